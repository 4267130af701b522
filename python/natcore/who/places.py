"""Where the rows of a log are (files, a spool, ClickHouse, Simple Log Service), and questions that are asked there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from natcore.errors import ConfigurationError
from natcore.internal.redaction import show

if TYPE_CHECKING:
    from natcore.labels import Labels
    from natcore.service.configuration_file import LogSettings
    from natcore.who.evidence import Evidence
    from natcore.who.query import Answer, Listing
    from natcore.who.question import Question
    from natcore.who.source import Source

ASKABLE = ("parquet", "clickhouse", "sls")  # sinks, the one that is asked first where a file has several
_CONNECTION = {  # of a sink's arguments those that its source has too
    "clickhouse": ("url", "table", "database", "user", "password"),
    "sls": (
        "endpoint", "project", "logstore", "region", "access_key_id", "access_key_secret", "security_token", "credentials",
        "label",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows are, and labels of inside addresses.

    Attributes
    ----------
    source
        Where delivered rows are; None: they are not asked.
    spool
        The folder of rows that still wait; None: it is not asked.
    labels
        Of inside addresses; None: no label is looked for.
    """

    source: Source | None
    spool: Path | None = None
    labels: Labels | None = None


def source_of(kind: str, arguments: Mapping[str, Any]) -> Source:
    """Return the source of what a sink with these arguments writes. kind: one of ASKABLE."""
    if kind == "parquet":
        from natcore.who.store import Store

        return Store(arguments["folder"])
    named = {name: arguments[name] for name in _CONNECTION[kind] if name in arguments}
    if kind == "sls":
        from natcore.who.sls import SlsSource

        return SlsSource(**named)
    from natcore.who.clickhouse import ClickHouseSource

    return ClickHouseSource(**named)


def source_at(text: str) -> Source:
    """Return the source of a folder of Parquet files, of s3://BUCKET/PREFIX, where such files are, or of
    http://HOST:PORT/DATABASE/TABLE, ClickHouse's.

    A bucket's endpoint, region and key are AWS_… of the environment (natcore.who.bucket); ClickHouse's user and password are
    NATCORE_CLICKHOUSE_USER and NATCORE_CLICKHOUSE_PASSWORD. Raises ConfigurationError.
    """
    url = urlsplit(text)
    if url.scheme not in ("http", "https"):
        return source_of("parquet", {"folder": text})
    names = url.path.strip("/").split("/")
    if len(names) != 2 or "@" in url.netloc or url.query:
        raise ConfigurationError(
            f"--log must be a folder, s3://BUCKET/PREFIX or http://HOST:PORT/DATABASE/TABLE, got {show(text)}"
        )
    login = {
        "user": os.environ.get("NATCORE_CLICKHOUSE_USER"), "password": os.environ.get("NATCORE_CLICKHOUSE_PASSWORD"),
    }  # fmt: skip
    where = {"url": f"{url.scheme}://{url.netloc}", "database": names[0], "table": names[1]}
    return source_of("clickhouse", {**where, **login})


def askable_logs(logs: Sequence[LogSettings]) -> list[LogSettings]:
    """Return the logs of a file that can be asked, the one that is asked first at the front.

    Of those to Simple Log Service only one with rows = "all" has rows about the log itself.
    """
    return sorted((log for log in logs if _is_askable(log)), key=lambda log: ASKABLE.index(kind_of(log)))


def kind_of(log: LogSettings) -> str:
    """Return the name of its sink."""
    return str(getattr(log.sink, "delivery_type", ""))


def spool_of(log: LogSettings) -> Path | None:
    """Return the folder where its rows wait; None: it has none, or the folder is not there yet."""
    folder = Path(log.options["spool"]) if "spool" in log.options else None
    return folder if folder is not None and folder.is_dir() else None


def _is_askable(log: LogSettings) -> bool:
    kind = kind_of(log)
    return kind in ASKABLE and (kind != "sls" or log.arguments.get("rows") == "all")


def ask(
    questions: Sequence[tuple[str, Question]], places: Places, record: Path | None = None
) -> tuple[Evidence, tuple[Answer | Listing, ...]]:
    """Return evidence and answers; who asks what is added to the file `record` before anybody sees them."""
    from natcore.who.evidence import ask_all
    from natcore.who.question_log import QuestionLog

    evidence, answers = ask_all(questions, places.source, spool=places.spool, labels=places.labels)
    if record is not None:
        QuestionLog(record).add(
            {"question": told["question"], "status": answer.status, "subscribers": answer.subscribers}
            for told, answer in zip(evidence.answers, answers, strict=True)
        )
    return evidence, answers
