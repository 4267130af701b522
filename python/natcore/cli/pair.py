"""The commands of a pair of gateways: activate, standby, and the witness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from natcore.cli.command import Json, failing
from natcore.cli.control import Instance, ask, print_done
from natcore.internal.extras import extra

with extra("cli"):
    import typer


def add_to(app: typer.Typer) -> None:
    app.command()(activate)
    app.command()(standby)
    app.command()(witness)


def activate(
    alone: Annotated[
        bool, typer.Option("--alone", help="The other machine is known to be off: it is not waited for.")
    ] = False,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Let this gateway of a pair take over from the other one; done when packets go.

    Without a witness, where the other one does not answer, this is refused unless the file's fence command, or --alone,
    says that it is off: two must never translate.
    """
    with failing(as_json):
        done = ask(instance, "activate", alone=alone)
    print_done(done, as_json, f"active, with {done['sessions']:,} sessions, after {done['seconds']:.3f} s")


def standby(instance: Instance = None, as_json: Json = False) -> None:
    """Let the other gateway of a pair take over from this one, which then follows it; nothing is lost."""
    with failing(as_json):
        done = ask(instance, "standby")
    print_done(done, as_json, f"{done['active']} takes over")


def witness(
    listen: Annotated[str, typer.Option(metavar="ADDRESS:PORT", help="Where both gateways ask.")],
    certificate: Annotated[Path, typer.Option(help="Its certificate, PEM.")],
    key: Annotated[Path, typer.Option(help="Its key, PEM, without a password.")],
    authority: Annotated[
        Path, typer.Option(help="The authority's certificate that signed both gateways' and its own.")
    ],
    lease: Annotated[float, typer.Option(help="Seconds that a vote is lent, as in both gateways' files.")] = 0.3,
    log_level: Annotated[str, typer.Option(help="The least that is told: debug, info, warning or error.")] = "info",
    as_json: Json = False,
) -> None:
    """Be the third vote of a pair of gateways, at a third place, until SIGTERM or SIGINT."""
    with failing(as_json):
        import os

        from natcore.internal.validation import check_choice, check_number
        from natcore.peer.channel import Credentials, parse_address
        from natcore.service import lines, output
        from natcore.service import witness as service
        from natcore.service.peer_settings import LONGEST_LEASE, SHORTEST_LEASE

        level = check_choice("--log-level", log_level, lines.LEVELS)
        at = parse_address("--listen", listen)
        seconds = float(check_number("--lease", lease, SHORTEST_LEASE, LONGEST_LEASE, unit="seconds"))
        line = lines.json_writer(level) if as_json else lines.text_writer(level, journal=lines.is_journal(os.environ))
        with output.LineWriter(line) as write, output.logging_to(write):
            service.run(at, Credentials(certificate, key, authority), seconds, write)
