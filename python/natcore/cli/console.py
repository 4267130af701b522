"""The command `natcore console`: a page in a browser over the control sockets of this machine's gateways."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from natcore.cli.command import Json, failing, say
from natcore.internal.extras import extra

with extra("cli"):
    import typer


def add_to(app: typer.Typer) -> None:
    app.command()(console)


def console(
    instance: Annotated[
        list[str] | None,
        typer.Option(help="A gateway's name, or its socket's path; may be given again. All that run, unless told."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Where it is served; port 0: any that is free.")
    ] = "127.0.0.1:8433",
    write: Annotated[
        bool, typer.Option("--write", help="Let session logs be enabled and stopped from the page.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve a page with this machine's gateways: traffic, session logs, sessions, ports, who had an address.

    It prints the address to open; its token is new at each start, and whoever has it may look, with --write also change. It
    runs until SIGTERM or SIGINT, as a client of the control sockets, and keeps nothing.
    """
    with failing(as_json):
        from natcore.console.app import Console, Server, bind, url_of
        from natcore.console.app import listen as parse
        from natcore.console.gateways import Gateways

        host, port = parse(listen)
        with bind(host, port) as bound:
            here = Console(
                Gateways(instance or ()), write=write, hosts=[host], cookie=f"natcore-{bound.getsockname()[1]}"
            )
            if not _is_loopback(bound.getsockname()[0]):
                say("warning: others can reach this address, and read along without TLS; ssh -L is safer", err=True)
            url = url_of(bound, here.access.token)
            if as_json:
                from natcore.cli import report

                report.print_json({"url": url, "write": write}, indent=None)
            else:
                say(f"{url}\n{'may change session logs' if write else 'read-only'}; Ctrl-C ends it", flush=True)
            Server(here).run([bound])


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
