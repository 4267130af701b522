"""The commands that ask the session log: who, what and talked."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from natcore.cli import report
from natcore.cli.command import Json, failing, say
from natcore.cli.control import Instance, print_live_owner
from natcore.cli.times import moment_of
from natcore.cli.words import answer_lines, listing_lines
from natcore.errors import ConfigurationError
from natcore.internal import exit_codes
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.internal.protocols import protocol_of
from natcore.internal.redaction import show
from natcore.internal.validation import digits, either

with extra("cli"):
    import typer

if TYPE_CHECKING:
    from natcore.who.places import Places
    from natcore.who.query import Answer, Listing
    from natcore.who.question import Question

EXIT_STATUS = {
    "exact": ExitCode.OK, "held-idle": ExitCode.OK, "static": ExitCode.OK, "complete": ExitCode.OK,
    "ambiguous": exit_codes.Answer.AMBIGUOUS, "incomplete": exit_codes.Answer.GAP, "gap": exit_codes.Answer.GAP,
    "unused": exit_codes.Answer.UNUSED,
}  # fmt: skip

Protocol = Annotated[str | None, typer.Option(help="tcp, udp, icmp (the port is its identifier), or a number.")]
At = Annotated[str | None, typer.Option(help="When, with its zone: 2026-11-20T12:03:17Z, 2026-11-20T20:03:17+08:00.")]
From = Annotated[str | None, typer.Option("--from", help="The begin of a span, in place of --at.")]
Until = Annotated[str | None, typer.Option("--until", help="The end of the span.")]
Log = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|URL",
        help="The folder of the log's Parquet files, or s3://BUCKET/PREFIX, or ClickHouse's http://HOST:8123/DATABASE/TABLE; "
        "user and password in NATCORE_CLICKHOUSE_USER and NATCORE_CLICKHOUSE_PASSWORD.",
    ),
]
Spool = Annotated[Path | None, typer.Option(help="The folder where rows wait for their destination.")]
Config = Annotated[Path | None, typer.Option(help="The gateway's file: it names where the log is.")]
Remote = Annotated[str | None, typer.Option(metavar="ADDRESS[:PORT]", help="Whom it talked to.")]
Tolerance = Annotated[float, typer.Option(help="Seconds by which the time may be wrong.")]
EvidenceFile = Annotated[
    Path | None,
    typer.Option("--evidence", help="Write the answers with their rows, files and hashes into this .json file."),
]
LabelSource = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="[FORM:]FILE",
        help="Which account had an inside address then: a .csv (prefix, label, from, until), or leases: "
        "dnsmasq:FILE, kea:FILE.",
    ),
]
TimelineFile = Annotated[
    str | None,
    typer.Option(
        "--timeline",
        metavar="FILE|-",
        help="Draw the sessions over time into a .svg or .png file; -: into the terminal.",
    ),
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--question-log",
        envvar="NATCORE_QUESTION_LOG",
        help="Add who asks what to this file before the answer is given.",
    ),
]


def add_to(app: typer.Typer) -> None:
    app.command()(who)
    app.command()(what)
    app.command()(talked)


def who(
    endpoint: Annotated[
        str | None, typer.Argument(metavar="[ADDRESS[:PORT]]", help="The outside address and port.", show_default=False)
    ] = None,
    protocol: Protocol = None,
    at: At = None,
    start: From = None,
    until: Until = None,
    log: Log = None,
    spool: Spool = None,
    config: Config = None,
    remote: Remote = None,
    tolerance: Tolerance = 2.0,
    questions: Annotated[
        Path | None, typer.Option(help="Many questions: a .csv with a heading, or a .jsonl; with --evidence.")
    ] = None,
    evidence: EvidenceFile = None,
    labels: LabelSource = None,
    timeline: TimelineFile = None,
    question_log: Record = None,
    live: Annotated[bool, typer.Option("--live", help="Who has it now: ask the running gateway.")] = False,
    instance: Instance = None,
    as_json: Json = False,
) -> None:
    """Who had an outside address and port then; with --live, who has it now.

    Without the port --remote must be given: the candidates are listed, the likeliest first. With the file of a gateway
    with ports = "deterministic", and without --log, --spool and --at, the answer is computed (RFC 7422).
    """
    with failing(as_json):
        if live:
            if any(value is not None for value in (at, start, until, log, spool, config, questions, evidence)):
                raise ConfigurationError(
                    "natcore who --live: the running gateway is asked; --at, --log, --spool and --config ask the log"
                )
            address, port = _whole_endpoint(endpoint)
            raise typer.Exit(print_live_owner(address, port, protocol, remote, instance, as_json))
        if questions is not None:
            if endpoint is not None or evidence is None:
                raise ConfigurationError(
                    "--questions needs --evidence, and no ADDRESS:PORT: the file has all questions"
                )
            raise typer.Exit(
                _ask_many(questions, _places(log, spool, config, labels), tolerance, evidence, question_log, as_json)
            )
        if config is not None and log is None and spool is None and at is None and start is None:
            raise typer.Exit(_compute(endpoint, protocol, config, as_json))
        question = _question_of_endpoint(endpoint, protocol, _span(at, start, until), remote, tolerance)
        answer = _ask(question, _places(log, spool, config, labels), evidence, question_log)
    _show(answer, as_json, timeline)


def what(
    inside: Annotated[str, typer.Argument(metavar="ADDRESS", help="The inside address.")],
    at: At = None,
    start: From = None,
    until: Until = None,
    protocol: Protocol = None,
    remote: Remote = None,
    log: Log = None,
    spool: Spool = None,
    config: Config = None,
    tolerance: Tolerance = 0.0,
    evidence: EvidenceFile = None,
    labels: LabelSource = None,
    timeline: TimelineFile = None,
    question_log: Record = None,
    as_json: Json = False,
) -> None:
    """The outside endpoints of an inside address then: each session, and whom it talked to."""
    with failing(as_json):
        question = _question(
            inside=inside, span=_span(at, start, until), protocol=protocol, remote=remote, tolerance=tolerance
        )
        answer = _ask(question, _places(log, spool, config, labels), evidence, question_log)
    _show(answer, as_json, timeline)


def talked(
    remote: Annotated[str, typer.Argument(metavar="ADDRESS[:PORT]", help="The remote address and port.")],
    at: At = None,
    start: From = None,
    until: Until = None,
    protocol: Protocol = None,
    log: Log = None,
    spool: Spool = None,
    config: Config = None,
    tolerance: Tolerance = 0.0,
    evidence: EvidenceFile = None,
    labels: LabelSource = None,
    timeline: TimelineFile = None,
    question_log: Record = None,
    as_json: Json = False,
) -> None:
    """Who talked to a remote then: each session, of all gateways in the log."""
    with failing(as_json):
        question = _question(span=_span(at, start, until), protocol=protocol, remote=remote, tolerance=tolerance)
        answer = _ask(question, _places(log, spool, config, labels), evidence, question_log)
    _show(answer, as_json, timeline)


def _places(log: str | None, spool: Path | None, config: Path | None, labels: str | None) -> Places:
    from natcore.labels import labels_at
    from natcore.who.places import ASKABLE, Places, askable_logs, kind_of, source_at, source_of, spool_of

    source = None if log is None else source_at(log)
    if config is not None:
        from natcore.service.configuration_file import load

        kept = askable_logs(load(config).logs)
        if source is None and kept:
            source = source_of(kind_of(kept[0]), kept[0].arguments)
            spool = spool or next((folder for folder in map(spool_of, kept) if folder is not None), None)
    if source is None and spool is None:
        found = "no --log, --spool or --config"
        if config:
            found = f"{config} has no [[log]] with sink = {either(map(repr, ASKABLE))}"
        raise ConfigurationError(f"where the log is: {found}; give one of them")
    return Places(source, spool, None if labels is None else labels_at(labels))


Span = tuple[datetime, datetime | None]


def _span(at: str | None, start: str | None, until: str | None) -> Span | None:
    """Return the moment or span; None: neither is given."""
    if at is not None and start is None and until is None:
        return moment_of("--at", at), None
    if at is None and start is not None and until is not None:
        return moment_of("--from", start), moment_of("--until", until)
    if at is None and start is None and until is None:
        return None
    raise ConfigurationError("the time must be --at alone, or --from and --until together")


def _question_of_endpoint(
    text: str | None, protocol: str | None, span: Span | None, remote: str | None, tolerance: float
) -> Question:
    if text is None:
        raise ConfigurationError("ADDRESS:PORT is missing; only with --questions it is left out")
    address, port = _endpoint("ADDRESS:PORT", text)
    if port is None and remote is None:
        raise ConfigurationError(
            f"ADDRESS:PORT must be an address, a colon and a port, unless --remote is given, got {show(text)}"
        )
    if (protocol is None and port is not None) or span is None:
        raise ConfigurationError(f"{'--at' if span is None else '--protocol'} is missing; give both")
    return _question(address=address, port=port, protocol=protocol, span=span, remote=remote, tolerance=tolerance)


def _question(
    *, span: Span | None, protocol: str | None, remote: str | None, tolerance: float, address: str | None = None,
    port: int | None = None, inside: str | None = None,
) -> Question:  # fmt: skip
    from natcore.who.question import Question

    if span is None:
        raise ConfigurationError("--at is missing; give it, or --from and --until")
    target = None if remote is None else _endpoint("--remote", remote)
    return Question(
        address, port, None if protocol is None else protocol_of(protocol), span[0],
        None if target is None else target[0] if target[1] is None else (target[0], target[1]), tolerance, None,
        inside=inside, until=span[1],
    )  # fmt: skip


def _ask(question: Question, places: Places, evidence: Path | None, record: Path | None) -> Answer | Listing:
    from natcore.who.places import ask

    found, (answer,) = ask([("1", question)], places, record)
    if evidence is not None:
        found.write(evidence)
    return answer


def _ask_many(file: Path, places: Places, tolerance: float, target: Path, record: Path | None, as_json: bool) -> int:
    """Answer the questions of a file into an evidence file; -> the exit status."""
    from natcore.who.places import ask
    from natcore.who.question_file import read_questions

    evidence, answers = ask(read_questions(file, tolerance), places, record)
    evidence.write(target)
    counts = dict(sorted(Counter(answer.status for answer in answers).items()))
    if as_json:
        report.print_json({"ok": True, "file": target, "questions": len(answers), "answers": counts})
    else:
        told = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        say(f"{len(answers):,} questions: {told}: {target}")
    return 0


def _compute(endpoint: str | None, protocol: str | None, config: Path, as_json: bool) -> int:
    """Print the host that has the port by the gateway's file alone; -> the exit status."""
    from natcore import deterministic
    from natcore.config import AnyEntry, Policy
    from natcore.service.configuration_file import load

    settings = load(config)
    policy = settings.gateway.get("policy", Policy())
    if policy.ports != "deterministic":
        raise ConfigurationError(
            f"--at is missing; only with ports = 'deterministic' it may be left out, got {show(policy.ports)}"
        )
    address, port = _whole_endpoint(endpoint)
    mode = settings.gateway.get("eip_bind_mode", "NAT")
    entries: list[AnyEntry] = [*settings.snat, *settings.dnat, *settings.no_nat]
    host = deterministic.who(entries, policy, address, port, protocol, eip_bind_mode=mode)
    if as_json:
        report.print_json({"status": "unused" if host is None else "computed", "subscriber": host})
    elif host is None:
        say(f"unused: by {config} no inside address has {endpoint}")
    else:
        say(f"computed: by {config} {host} has {endpoint}, at all times of this configuration")
    return EXIT_STATUS["unused"] if host is None else 0


def _whole_endpoint(text: str | None) -> tuple[str, int]:
    if text is None:
        raise ConfigurationError("ADDRESS:PORT is missing")
    address, port = _endpoint("ADDRESS:PORT", text)
    if port is None:
        raise ConfigurationError(f"ADDRESS:PORT must be an address, a colon and a port, got {show(text)}")
    return address, port


def _endpoint(name: str, text: str) -> tuple[str, int | None]:
    address, colon, port = text.partition(":")
    number = digits(port)
    if colon and number is None:
        raise ConfigurationError(f"{name} must be an address, a colon and a port, got {show(text)}")
    return address, number if colon else None


def _show(answer: Answer | Listing, as_json: bool, timeline: str | None) -> None:
    """Print the answer, and end with its exit status."""
    from natcore.who.query import Listing
    from natcore.who.timeline import lines, save

    if timeline not in (None, "-"):
        with failing(as_json):
            save(answer, timeline)

    if as_json:
        report.print_json(answer.as_dict())
    elif isinstance(answer, Listing):
        for line in listing_lines(answer):
            say(line)
    else:
        for line in answer_lines(answer):
            say(line)
    if timeline == "-" and not as_json:
        for line in lines(answer, report.console().width):
            say(line)
    raise typer.Exit(EXIT_STATUS[answer.status])
