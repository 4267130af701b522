"""The command line: run, check, demo, replay, explain, clean, and the questions to the session log (asking_cli, log_cli).

A command imports what it needs when it runs: `who` should not wait for what forwards packets.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from natcore.cli import asking as asking_cli
from natcore.cli import completion
from natcore.cli import configuration as configuration_cli
from natcore.cli import conformance as conformance_cli
from natcore.cli import console as console_cli
from natcore.cli import control as control_cli
from natcore.cli import log as log_cli
from natcore.cli import pair as pair_cli
from natcore.cli import reload as reload_cli
from natcore.cli import service as service_cli
from natcore.cli import sls as sls_cli
from natcore.cli.command import Group, Json, failing, say
from natcore.errors import ConfigurationError
from natcore.internal.exit_codes import ExitCode
from natcore.internal.extras import extra
from natcore.internal.redaction import show

with extra("cli"):
    import typer

if TYPE_CHECKING:
    from natcore.config import Eip, OutsideInterface, SnatEntry
    from natcore.service.configuration_file import Settings

app = typer.Typer(cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
control_cli.add_to(app)
asking_cli.add_to(app)
log_cli.add_to(app)
sls_cli.add_to(app)
reload_cli.add_to(app)
pair_cli.add_to(app)
configuration_cli.add_to(app)
service_cli.add_to(app)
console_cli.add_to(app)
conformance_cli.add_to(app)
completion.add_to(app)

File = Annotated[Path, typer.Argument(metavar="GATEWAY.TOML", help="The gateway's file.", show_default=False)]


_is_program = False  # run by main(), so that the process is natcore's alone


def main() -> None:
    global _is_program
    _is_program = True
    completion.init()
    app(prog_name=completion.PROGRAM)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"natcore {version('natcore')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """A NAT44 gateway with an exact session log."""


@app.command()
def run(
    file: File,
    log_level: Annotated[str, typer.Option(help="The least that is told: debug, info, warning or error.")] = "info",
    as_json: Json = False,
) -> None:
    """Forward packets as the file says, until SIGTERM or SIGINT. SIGHUP reloads it, SIGUSR1 tells the counters.

    Each line on standard error is an event with its fields; with --json it is an object on standard output.
    """
    if _is_program and "OPENBLAS_NUM_THREADS" not in os.environ:  # numpy's threads would keep what is given up below
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    with failing(as_json):
        from natcore.internal.validation import check_choice
        from natcore.service import lines

        level = check_choice("--log-level", log_level, lines.LEVELS)
    with failing(as_json, of_file=True):
        from natcore.internal import threads
        from natcore.service import control, output, privileges, stand_in
        from natcore.service.configuration_file import control_of, driver_of, load
        from natcore.service.run import Service
        from natcore.service.succession import Predecessor

        predecessor = Predecessor.of_environment()
        told = nullcontext() if predecessor is None else predecessor.telling()
        with told:
            if _is_program:
                control.join_group(control_of(file))
            kept = privileges.confine(driver_of(file)) if _is_program else []  # before libraries start threads
            settings = load(file, to_run=True)
            threads.set_names("natcore")
            line = (
                lines.json_writer(level) if as_json else lines.text_writer(level, journal=lines.is_journal(os.environ))
            )
            with output.LineWriter(line) as write, output.logging_to(write):
                for warning in settings.warnings:
                    write("warning", {"message": f"{settings.source}: {warning}"})
                for reason in kept:
                    write("warning", {"message": f"not given up: {reason}"})
                service = Service(settings, write, predecessor)
                service.run()
        if _is_program and service.successor and not (service.notifier.is_heard or service.stand_in.is_there):
            stand_in.become(service.successor, service.asked)


@app.command()
def check(
    file: File,
    here: Annotated[
        bool, typer.Option("--here", help="Look at this machine too: interfaces, routes, folders, rights.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say whether the file is good, and what it makes: what `run` refuses is refused, all errors at once.

    With --here also whether it fits this machine, as this user and in this network namespace; nothing is changed.
    """
    with failing(as_json, of_file=True):
        from natcore.cli import report
        from natcore.service.configuration_file import load

        settings = load(file, to_run=True)
        settings.make_gateway().close()
        summary, found = _summary(settings), _look_here(settings) if here else []
        fits = not any(each["level"] == "error" for each in found)
        if as_json:
            report.print_json(
                {"ok": fits, **summary, "warnings": settings.warnings, **({"here": found} if here else {})}
            )
        else:
            _warn(settings)
            console = report.console()
            console.print(
                f"[green]{report.text(file)} is good[/]" + ("" if fits else ", and does not fit this machine")
            )
            for name, value in summary.items():
                console.print(f"  {name}: {report.text(value)}", soft_wrap=True)
            for each in found:
                console.print(report.text(f"{each['level']}: {each['key']}: {each['text']}"), soft_wrap=True)
        if not fits:
            raise typer.Exit(ExitCode.CONFIGURATION)


def _look_here(settings: Settings) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from natcore.service.here import look

    return [asdict(each) for each in look(settings)]


@app.command("demo")
def show_demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the log's files and the namespaces.")] = False,
    sls: Annotated[bool, typer.Option("--sls", help="Deliver to a local Simple Log Service that fails.")] = False,
    driver: Annotated[str, typer.Option(help="How frames are taken: af_packet or af_xdp.")] = "af_packet",
    as_json: Json = False,
) -> None:
    """Watch real programs reach a server through natcore, then read their session log (in memory where not root).

    With --sls: how a session log is delivered, fails, waits and recovers, with no cloud account.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as after Ctrl-C
    with failing(as_json):
        if sls:
            raise typer.Exit(sls_cli.show_demo(as_json))
        from natcore.choices import Driver
        from natcore.cli import demo as demo_cli
        from natcore.internal.validation import check_choice

        raise typer.Exit(demo_cli.show_demo(keep, check_choice("--driver", driver, get_args(Driver)), as_json))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="CAPTURE", help="A pcap or pcapng file of an inside link.")],
    snat: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX=POOL[,POOL…]", help="Inside sources and their pool.")
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(metavar="GATEWAY.TOML", help="What would become of it under this file; several are compared."),
    ] = None,
    inside: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="Inside addresses; those of the SNAT entries, unless told."),
    ] = None,
    gateway_mac: Annotated[
        list[str] | None, typer.Option(metavar="MAC", help="The gateway's: frames to it came from inside.")
    ] = None,
    from_inside: Annotated[
        list[str] | None,
        typer.Option(metavar="INTERFACE", help="An interface of the capture: its frames came from inside."),
    ] = None,
    from_outside: Annotated[
        list[str] | None, typer.Option(metavar="INTERFACE", help="Likewise: its frames came from outside.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Write the frames of the outside link to this pcap file.")] = None,
    annotate: Annotated[
        Path | None,
        typer.Option(help="Write the capture as pcapng, each frame with its verdict and the reason as a comment."),
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Keep the session log in this folder, as Parquet files.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.SVG", help="With --config: ports and sessions over time.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Make every choice of ports repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Send a capture through a gateway in memory: what it would have made of this traffic.

    With --config: under one or several configurations, compared with the first one, and when the pool would run out.
    """
    with failing(as_json):
        from natcore.cli import replay as replay_cli

        links = gateway_mac or (), from_inside or (), from_outside or ()
        if bool(snat) == bool(config):
            raise ConfigurationError("natcore replay: give either --snat or --config")
        if config:
            if write or annotate or log:
                raise ConfigurationError(
                    "natcore replay: --write, --annotate and --log are for --snat, not for --config"
                )
            raise typer.Exit(replay_cli.what_if(file, config, inside or (), links, picture, seed, as_json))
        if picture:
            raise ConfigurationError("natcore replay: --picture is for --config")
        entries = [_parse_snat(text) for text in snat or ()]
        raise typer.Exit(replay_cli.replay(file, entries, inside or (), links, write, annotate, log, seed, as_json))


@app.command()
def explain(
    file: Annotated[
        str | None,
        typer.Argument(metavar="GATEWAY.TOML", help="The gateway's file; not with --live.", show_default=False),
    ] = None,
    frame: Annotated[str | None, typer.Argument(metavar="HEX", help="An Ethernet frame.", show_default=False)] = None,
    pcap: Annotated[Path | None, typer.Option(help="The last packet of this capture, the others before it.")] = None,
    side: Annotated[str, typer.Option(help="Where it comes from: inside or outside.")] = "inside",
    now: Annotated[float, typer.Option(help="When, in seconds since the gateway began; a capture has its own.")] = 0.0,
    live: Annotated[bool, typer.Option("--live", help="Ask the running gateway; nothing is changed.")] = False,
    instance: control_cli.Instance = None,
    as_json: Json = False,
) -> None:
    """Say what a gateway would do with a packet, step by step and why: the running one, or a new one of the file.

    A new one has no sessions but those that the capture's packets before it open. With --live the running one is asked,
    about the capture's last packet alone.
    """
    with failing(as_json):
        from natcore.internal.validation import check_choice
        from natcore.verdict import Side

        check_choice("--side", side, ("inside", "outside"))
        if live:
            if frame is not None:
                raise ConfigurationError("natcore explain --live: give a frame in HEX or --pcap, and no file")
            *_, (_, asked) = _packets(file, pcap, now)
            control_cli.print_live_explanation(asked, side, instance, as_json)
            return
        if file is None:
            raise ConfigurationError("natcore explain: give the gateway's file, or --live")
        from natcore.service.configuration_file import load

        settings = load(file)
        before: tuple[float, bytes] | None = None
        earlier = 0
        with settings.make_gateway() as gateway:
            for packet in _packets(frame, pcap, now):
                if before is not None:
                    gateway.translate_one(before[1], Side[side.upper()], before[0])
                    earlier += 1
                before = packet
            assert before is not None
            told = gateway.explain(before[1], Side[side.upper()], before[0])
    if as_json:
        from natcore.cli import report

        steps = [step._asdict() for step in told.steps]
        report.print_json(
            {
                "packet": told.packet, "verdict": told.verdict.name, "counter": told.counter, "steps": steps,
                "asked": "a new gateway of the file", "packets_before": earlier,
            }
        )  # fmt: skip
    else:
        say(told)
        sessions = f"no sessions but those of the capture's {earlier:,} packets before this one"
        say(
            f"asked: a new gateway made of {file}, with {sessions if earlier else 'no sessions'}; --live asks the running one"
        )


def _packets(frame: str | None, pcap: Path | None, now: float) -> Iterator[tuple[float, bytes]]:
    """Yield (seconds, frame): the packets before the one in question, and that one last."""
    if (frame is None) == (pcap is None):
        raise ConfigurationError("natcore explain: give either a frame in HEX or --pcap")
    if frame is not None:
        try:
            yield now, bytes.fromhex(frame)
            return
        except ValueError as error:
            raise ConfigurationError(f"HEX must be pairs of hexadecimal digits, got {show(frame)} ({error})") from None
    assert pcap is not None
    from natcore.capture.pcap import read

    first = min((packet.time_ns for packet in read(pcap)), default=None)
    if first is None:
        raise ConfigurationError(f"--pcap must be a capture with packets, got {show(str(pcap))}")
    for packet in read(pcap):
        yield now + (packet.time_ns - first) / 1e9, packet.frame


@app.command()
def clean(as_json: Json = False) -> None:
    """Put back what a gateway that was killed left on this machine's interfaces."""
    with failing(as_json):
        from natcore.demo import demo
        from natcore.plane import links

        cleaned = {"interfaces": links.clean(), "namespaces": demo.clean()}
    if as_json:
        from natcore.cli import report

        report.print_json({"ok": True, **cleaned})
    else:
        say(f"put back: {_listed(cleaned)}" if any(cleaned.values()) else "nothing was left")


@app.command()
def block(file: File, as_json: Json = False) -> None:
    """Keep the kernel from forwarding what comes by the file's interfaces, until its gateway runs: for a unit at boot."""
    with failing(as_json, of_file=True):
        from natcore.plane import kernel_bypass
        from natcore.service.configuration_file import SettingsError, load

        settings = load(file)
        if settings.plane is None:
            raise SettingsError(settings.source, "plane", None, "missing; `block` needs its interfaces")
        names = [name for side in ("inside", "outside") for name in _as_list(settings.plane[side])]
        for name in names:
            claim = kernel_bypass.Claim(name)
            try:
                kernel_bypass.forward_nothing(name)
            finally:
                claim.close()
    if as_json:
        from natcore.cli import report

        report.print_json({"ok": True, "interfaces": names})
    else:
        say(f"nothing that comes by {', '.join(names)} is forwarded by the kernel (natcore clean undoes it)")


def _warn(settings: Settings) -> None:
    for warning in settings.warnings:
        say(f"warning: {settings.source}: {warning}", err=True)


def _summary(settings: Settings) -> dict[str, Any]:
    import socket

    sinks = [log.make_sink() for log in settings.logs]
    here = {name for _, name in socket.if_nameindex()}
    plane = settings.plane or {}
    names = [name for side in ("inside", "outside") if side in plane for name in _as_list(plane[side])]
    return {
        "snat": [f"{entry.source} to {', '.join(_element(each) for each in entry.pool)}" for entry in settings.snat],
        "interfaces": [name if name in here else f"{name} (not on this machine now)" for name in names],
        "session logs": [{"type": sink.delivery_type, **sink.destination} for sink in sinks],
    }


def _element(element: Eip | OutsideInterface) -> str:
    return str(getattr(element, "address", element))


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _parse_snat(text: str) -> SnatEntry:
    source, equals, pool = text.partition("=")
    if not equals:
        raise ConfigurationError(f"--snat must be PREFIX=POOL, such as 10.0.0.0/8=203.0.113.1, got {show(text)}")
    from natcore.config import SnatEntry

    return SnatEntry(source, pool=pool.split(","))


def _listed(fields: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


if __name__ == "__main__":
    main()
