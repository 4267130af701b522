"""One end of an ICE connection, as a program: `ice_peer.py controlling|controlled STUN-SERVER`; it speaks lines of JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import aioice


async def main(role: str, server: str) -> None:
    """Tells its candidates, reads the other's, connects, and exchanges a message."""
    connection = aioice.Connection(ice_controlling=role == "controlling", stun_server=(server, 3478), use_ipv6=False)
    await connection.gather_candidates()
    candidates = [candidate.to_sdp() for candidate in connection.local_candidates]
    print(json.dumps([connection.local_username, connection.local_password, candidates]), flush=True)
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    connection.remote_username, connection.remote_password, others = json.loads(line)
    for candidate in others:
        await connection.add_remote_candidate(aioice.Candidate.from_sdp(candidate))
    await connection.add_remote_candidate(None)
    await connection.connect()
    await connection.send(role.encode())
    print(json.dumps((await connection.recv()).decode()), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await connection.close()


asyncio.run(main(*sys.argv[1:]))
