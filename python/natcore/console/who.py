"""The page who: who has an outside endpoint now, by the gateway, or had it then, by a session log that is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from natcore.cli.words import answer_lines, owner_lines
from natcore.console.charts import Timeline, timeline
from natcore.control.client import Client
from natcore.control.protocol import Row
from natcore.errors import ControlError, Error
from natcore.internal.redaction import redact, show
from natcore.internal.validation import digits, either

if TYPE_CHECKING:
    from natcore.service.configuration_file import LogSettings
    from natcore.who.places import Places
    from natcore.who.query import Answer
    from natcore.who.question import Question

Query = Mapping[str, str]
View = dict[str, Any]
NEAR_SECONDS = 7200.0  # around the time asked for, that a timeline shows of a gap
MOST_REMEMBERED = 16  # places; each remembers what it read


class _Log(NamedTuple):
    """A log that can be asked: what makes its places, and what they are made of."""

    made_of: object
    make: Callable[[], Places]


class Who:
    """Asks the gateways who has an endpoint now, and their session logs who had it.

    The logs are those of --log, those of the gateway's file that this process may read, and those to Parquet files that run.

    Parameters
    ----------
    logs
        Folders of Parquet files, or ClickHouse's http://HOST:8123/DATABASE/TABLE.
    spool
        The folder where rows of these wait.
    record
        The file to which who asks what is added before the answer is given.
    """

    def __init__(self, logs: Sequence[str] = (), spool: Path | None = None, record: Path | None = None) -> None:
        self._named, self._spool, self._record = tuple(logs), spool, record
        self._places: dict[str, tuple[object, Places]] = {}  # so that a second question is fast

    def view(self, client: Client, query: Query) -> View:
        """Return what the page shows for a form."""
        client.ask("status")
        status = client.summary
        logs, unread = self._logs(client, status)
        found: View = {
            "query": query, "logs": list(logs), "unread": unread, "lines": [], "state": "", "problem": "", "timeline": None,
            "status": status,
        }  # fmt: skip
        if not query.get("endpoint", "").strip():
            return found
        try:
            if query.get("when", "now") == "now":
                return found | _now(client, query)
            return found | self._then(query, logs)
        except (Error, OSError) as error:
            return found | {"problem": redact(str(error))}

    def _then(self, query: Query, logs: Mapping[str, _Log]) -> View:
        from natcore.who.places import ask
        from natcore.who.query import Answer

        if not logs:
            raise ControlError(
                "no session log can be asked here: start the console with --log, or as a user that may read the gateway's file"
            )
        chosen = query.get("log") or next(iter(logs))
        if chosen not in logs:
            raise ControlError(f"the session log must be {either(logs)}, got {show(chosen)}")
        question = _question(query)
        _, (answer,) = ask([("1", question)], self._opened(chosen, logs[chosen]), self._record)
        assert isinstance(answer, Answer)
        return {"lines": list(answer_lines(answer)), "state": answer.status, "timeline": _timeline(answer)}

    def _opened(self, name: str, log: _Log) -> Places:
        known = self._places.pop(name, None)
        places = known[1] if known is not None and known[0] == log.made_of else log.make()
        self._places[name] = log.made_of, places
        while len(self._places) > MOST_REMEMBERED:
            del self._places[next(iter(self._places))]
        return places

    def _logs(self, client: Client, status: Row) -> tuple[dict[str, _Log], str]:
        """Return the logs that can be asked, by the name that the form has; and why the gateway's file is not among them."""
        found = {text: self._named_log(text) for text in self._named}
        folders = {Path(text).absolute() for text in self._named}
        unread = ""
        if "file" in status:
            try:
                for log in _logs_of_file(status["file"]):
                    found[f"{log.name} ({_kind(log)}) of {status['file']}"] = _file_log(log)
                    folders.add(Path(log.arguments.get("folder", "/")).absolute())
            except (Error, OSError) as error:
                unread = redact(str(error))
        for each in client.ask("logs"):
            folder = each.get("destination", {}).get("folder")
            if each.get("type") == "parquet" and folder and Path(folder).absolute() not in folders:
                found[f"{each['name']} ({folder})"] = _folder_log(folder)
        return found, unread

    def _named_log(self, text: str) -> _Log:
        def make() -> Places:
            from natcore.who.places import Places, source_at

            return Places(source_at(text), self._spool)

        return _Log(text, make)


def _folder_log(folder: str) -> _Log:
    def make() -> Places:
        from natcore.who.places import Places, source_at

        return Places(source_at(folder))

    return _Log(folder, make)


def _logs_of_file(path: str) -> list[LogSettings]:
    from natcore.service.configuration_file import load
    from natcore.who.places import askable_logs

    return askable_logs(load(path).logs)


def _kind(log: LogSettings) -> str:
    from natcore.who.places import kind_of

    return kind_of(log)


def _file_log(log: LogSettings) -> _Log:
    from natcore.who.places import Places, kind_of, source_of, spool_of

    def make() -> Places:
        return Places(source_of(kind_of(log), log.arguments))

    def with_spool() -> Places:
        return replace(make(), spool=spool_of(log))

    return _Log((kind_of(log), log.arguments, spool_of(log)), with_spool)


def _now(client: Client, query: Query) -> View:
    address, port = _endpoint("the outside endpoint", query["endpoint"])
    if port is None:
        raise ControlError("the outside endpoint must have a port where the gateway is asked; a session log needs none")
    rows = client.ask(
        "who", address=address, port=port, protocol=query.get("protocol") or None,
        remote=query.get("remote", "").strip() or None,
    )  # fmt: skip
    return {"lines": list(owner_lines(rows, client.summary)), "state": client.summary["status"]}


def _question(query: Query) -> Question:
    """Return the form's question. Raises Error."""
    from natcore.internal.protocols import protocol_of
    from natcore.who.question import Question

    address, port = _endpoint("the outside endpoint", query["endpoint"])
    remote: Any = None
    if text := query.get("remote", "").strip():
        host, its_port = _endpoint("the remote", text)
        remote = host if its_port is None else (host, its_port)
    if port is None and remote is None:
        raise ControlError("the outside endpoint must be an address, a colon and a port, unless the remote is given")
    protocol = query.get("protocol") or None
    if port is not None and protocol is None:
        raise ControlError("the protocol must be given where a port is")
    span = query.get("when") == "span"
    return Question(
        address, port, None if protocol is None else protocol_of(protocol),
        _moment("the begin of the span" if span else "the time", query.get("from" if span else "at", "")), remote,
        _seconds(query.get("tolerance", "2")), None,
        until=_moment("the end of the span", query.get("until", "")) if span else None,
    )  # fmt: skip


def _endpoint(name: str, text: str) -> tuple[str, int | None]:
    address, colon, port = text.strip().partition(":")
    number = digits(port)
    if colon and number is None:
        raise ControlError(f"{name} must be an address, a colon and a port, got {show(text)}")
    return address, number if colon else None


def _moment(name: str, text: str) -> datetime:
    """Return a time of the form; one without a zone is in UTC, as its label says."""
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ControlError(f"{name} must be such as 2026-11-20T12:03:17Z, got {show(text)}") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ControlError(f"the tolerance must be a number of seconds, got {show(text)}") from None


def _timeline(answer: Answer) -> Timeline:
    """Return the sessions and gaps around the time that was asked for."""
    start, end = answer.at.timestamp(), (answer.until or answer.at).timestamp()
    lanes: list[tuple[str, str, list[tuple[str, float, float | None]]]] = []
    for match in answer.matches:
        spans: list[tuple[str, float, float | None]] = [
            ("held", match.start.timestamp(), match.end.timestamp() if match.end else None)
        ]
        if match.window:
            spans.append(("window", match.window[0].timestamp(), match.window[1].timestamp()))
        lanes.append((f"{match.pri_ip}:{match.pri_port}", f"session {match.session}", spans))
    for first, last, reason in answer.gaps:  # one may have begun in 1970
        until = None if last is None else min(last.timestamp(), end + NEAR_SECONDS)
        lanes.append(("not known", reason, [("gap", max(first.timestamp(), start - NEAR_SECONDS), until)]))
    return timeline((start - answer.tolerance, end + answer.tolerance), lanes)
