"""The command `natcore console`: a page in a browser over the control sockets of this machine's gateways."""

from __future__ import annotations

import ipaddress
from pathlib import Path
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
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|URL",
            help="A log that the page who can ask, as natcore who does; may be given again. Besides, it can ask the logs of "
            "the gateway's file, where this user may read it, and those to Parquet files that run.",
        ),
    ] = None,
    spool: Annotated[
        Path | None, typer.Option(help="The folder where rows of --log wait for their destination.")
    ] = None,
    question_log: Annotated[
        Path | None,
        typer.Option(
            "--question-log",
            envvar="NATCORE_QUESTION_LOG",
            help="Add who asks a log what to this file before the answer is given.",
        ),
    ] = None,
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
        from natcore.console.who import Who

        host, port = parse(listen)
        with bind(host, port) as bound:
            here = Console(
                Gateways(instance or ()), write=write, hosts=[host], cookie=f"natcore-{bound.getsockname()[1]}",
                who=Who(log or (), spool, question_log),
            )  # fmt: skip
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
