"""The commands that ask the session log: who."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import report
from .command import Json, failing
from .errors import ConfigurationError

if TYPE_CHECKING:
    from .query import Answer, Match

EXIT_STATUS = {"exact": 0, "held-idle": 0, "ambiguous": 3, "gap": 4, "nobody": 5}


def add_to(app: typer.Typer) -> None:
    app.command()(who)


def who(
    endpoint: Annotated[str, typer.Argument(metavar="ADDRESS:PORT", help="The outside address and port.")],
    protocol: Annotated[str, typer.Option(help="tcp, udp, icmp (the port is its identifier), or a number.")],
    at: Annotated[str, typer.Option(help="When, with its zone: 2026-11-20T12:03:17Z, 2026-11-20T20:03:17+08:00.")],
    log: Annotated[Path | None, typer.Option(help="The folder of the log's Parquet files.")] = None,
    spool: Annotated[Path | None, typer.Option(help="The folder where rows wait for their destination.")] = None,
    config: Annotated[Path | None, typer.Option(help="The gateway's file: it names both folders.")] = None,
    remote: Annotated[str | None, typer.Option(metavar="ADDRESS[:PORT]", help="Whom it talked to.")] = None,
    tolerance: Annotated[float, typer.Option(help="Seconds by which the time may be wrong.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Who had an outside address and port then.

    The exit status is 0 for one subscriber, 3 for several, 4 where the log has a hole there, 5 for nobody.
    """
    with failing(as_json):
        answer = _ask(endpoint, protocol, at, _places(log, spool, config), remote, tolerance)
    if as_json:
        report.print_json(answer.as_dict())
    else:
        _print_answer(answer)
    raise typer.Exit(EXIT_STATUS[answer.status])


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows are; more: further arguments of query.who."""

    log: Path | None
    spool: Path | None
    more: dict[str, Any]


def _places(log: Path | None, spool: Path | None, config: Path | None) -> Places:
    more: dict[str, Any] = {}
    if config is not None:
        from .config import Timeouts
        from .settings import load

        settings = load(config)
        timeouts = settings.gateway.get("timeouts", Timeouts())
        more["longest_idle"] = max(getattr(timeouts, name) for name in Timeouts.__dataclass_fields__)
        kept = [each for each in settings.logs if getattr(each.sink, "delivery_type", "") == "parquet"]
        if log is None and kept:
            log = Path(kept[0].arguments["folder"])
            spools = [each.options["spool"] for each in kept if "spool" in each.options]
            spool = spool or next((Path(folder) for folder in spools if Path(folder).is_dir()), None)
    if log is None and spool is None:
        found = f"{config} has no [[log]] with sink = 'parquet'" if config else "no --log, --spool or --config"
        raise ConfigurationError(f"where the log is: {found}; allowed is one of them")
    return Places(log, spool, more)


def _ask(endpoint: str, protocol: str, at: str, places: Places, remote: str | None, tolerance: float) -> Answer:
    from . import query

    address, port = _endpoint("ADDRESS:PORT", endpoint)
    if port is None:
        raise ConfigurationError(f"ADDRESS:PORT={endpoint!r}: allowed is an address, a colon and a port")
    target = None if remote is None else _endpoint("--remote", remote)
    return query.who(
        places.log, address, port, protocol=int(protocol) if protocol.isdigit() else protocol, at=_moment("--at", at),
        remote=None if target is None else target[0] if target[1] is None else (target[0], target[1]),
        tolerance=tolerance, spool=places.spool, **places.more,
    )  # fmt: skip


def _endpoint(name: str, text: str) -> tuple[str, int | None]:
    address, colon, port = text.partition(":")
    if colon and not port.isdigit():
        raise ConfigurationError(f"{name}={text!r}: allowed is an address, a colon and a port")
    return address, int(port) if colon else None


def _moment(name: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigurationError(f"{name}={text!r}: allowed is a time with its zone, such as 2026-11-20T12:03:17Z")
    return moment


def _print_answer(answer: Answer) -> None:
    protocol = report.PROTOCOLS.get(answer.protocol, f"protocol {answer.protocol}")
    print(f"{answer.status}: {answer.reason}")
    print(f"({answer.address}:{answer.port} {protocol} at {_told(answer.at)} within {answer.tolerance:g} s)")
    for match in answer.matches:
        _print_match(match)
    for start, end, reason in answer.gaps:
        print(f"not known: {_told(start)} to {_told(end) if end else 'now'}: {reason}")


def _print_match(match: Match) -> None:
    remote = "a remote that is redacted" if match.pub_ip is None else f"{match.pub_ip}:{match.pub_port}"
    eip = "" if match.eip in (None, match.nat_ip) else f" (EIP {match.eip})"
    print(f"  {match.pri_ip}:{match.pri_port} as {match.nat_ip}:{match.nat_port}{eip} to {remote}")
    if match.window:
        print(f"    window {_told(match.window[0])} to {_told(match.window[1])}")
    print(f"    session {match.session}, seen {_told(match.start)} to {_told(match.end) if match.end else '…'}")


def _told(moment: datetime) -> str:
    """In UTC, whole seconds where it is one."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")
