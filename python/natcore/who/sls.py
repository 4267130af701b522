"""The session log in Simple Log Service, for queries: a `Source` over the Logstore of an SlsSink with rows="all".

Each request is a search by the index that `SlsSink.provision` makes, and an analysis (SQL) of what is found.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from natcore.dtypes import (
    BLOCK_ALLOCATED,
    BLOCK_RELEASED,
    CLOCK,
    COVER,
    CREATE,
    END,
    ENTRY,
    EVENT_COVER,
    FIELDS,
    GAP,
    REFUSAL,
    SETTING,
    WINDOW,
)
from natcore.errors import ConfigurationError, Error
from natcore.internal.extras import extra
from natcore.internal.redaction import show
from natcore.internal.validation import (
    check_choice,
    check_name,
    check_number,
    check_optional_text,
    check_url,
    parse_ipv4,
)
from natcore.sinks.base import ADDRESSES
from natcore.sinks.sls import MICROSECONDS
from natcore.who.source import REDACTED, Part, Sought
from natcore.who.table_source import CHUNK, COLUMNS, EVENT_COLUMNS, FOREVER, NUMBER_OF, Counted, Key, TableSource

if TYPE_CHECKING:
    from natcore.sinks._sls_client import Client, Credentials

MOST_ROWS = 1_000_000  # of an answer, as the service limits it
_SESSIONS = f"kind in [{WINDOW} {END}]"
_FACTS = f"kind in [{COVER} {CLOCK}]"
_BLOCKS = f"kind in [{BLOCK_ALLOCATED} {BLOCK_RELEASED}]"
_EVENTS = f"kind in [{REFUSAL} {EVENT_COVER}]"
assert WINDOW < CREATE < END < GAP < COVER < ENTRY < SETTING < CLOCK < BLOCK_ALLOCATED < BLOCK_RELEASED
_SECOND = 1_000_000
_RUN = re.compile("[0-9A-Za-z-]{1,64}")


class SlsSource(TableSource):
    """The rows of a Logstore into which an SlsSink with rows="all" writes. The key needs log:GetLogStoreLogs.

    Parameters
    ----------
    endpoint, project, logstore, region, access_key_id, access_key_secret, security_token, credentials
        As of `SlsSink`.
    label
        True: the Logstore has the field `label`, and an index of it.
    timeout
        Seconds of a request, 0.1 to 3,600.
    fresh
        Seconds, 0 to 86,400, for which what is known of a stretch of time is not asked again: rows that come meanwhile are
        found, but a gap that they close is told a while longer.
    clock
        Seconds of any origin; for tests.

    Raises
    ------
    ConfigurationError
        A value that is not allowed.
    """

    def __init__(
        self,
        endpoint: str,
        project: str,
        logstore: str,
        *,
        region: str | None = None,
        access_key_id: str | None = None,
        access_key_secret: str | None = None,
        security_token: str | None = None,
        credentials: Callable[[], Credentials] | None = None,
        label: bool = False,
        timeout: float = 60.0,
        fresh: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._project, self._logstore = check_name("project", project), check_name("logstore", logstore)
        super().__init__(f"{project}/{logstore}", fresh, clock)
        if (credentials is None) == (not (access_key_id and access_key_secret)):
            raise ConfigurationError(
                "credentials must be access_key_id and access_key_secret, or a callable; give one of the two"
            )
        self._label = ("COALESCE(label, '')",) if check_choice("label", label, (True, False)) else ()
        check_number("timeout", timeout, 0.1, 3600, unit="seconds")
        check_optional_text("region", region)
        self._endpoint = check_url("endpoint", endpoint)
        fixed: Credentials = (access_key_id or "", access_key_secret or "", security_token)
        with extra("sls"):
            sdk = import_module("natcore.sinks._sls_client")
        self._error: type[Exception] = sdk.LogException
        self._client: Client = sdk.Client(self._endpoint, region, credentials or (lambda: fixed), timeout)
        self._turn = threading.Lock()  # a client is one thread's at a time

    def __repr__(self) -> str:
        return f"<SlsSource {self._endpoint} {self._project}/{self._logstore}>"

    # ---- what the Logstore is asked ----

    def fact_rows(self, start: int, end: int) -> list[list[Any]]:
        """Return the rows that are no session's."""
        columns = ("instance", "vpc_id", "run", *(MICROSECONDS.get(name, name) for name in FIELDS))
        told = f"kind = {GAP} or kind in [{ENTRY} {CLOCK}] or (kind = {COVER} and flags > 0)"
        found = self._select(told, columns, 0, FOREVER)
        found += self._select(f"kind = {COVER}", columns, start, end)
        return [_numbers(row, ("", "", "", *FIELDS)) for row in found]

    def chunks(self, counted: Counted, start: int, end: int) -> list[list[Any]]:
        """Return the chunks of numbers."""
        column = NUMBER_OF[counted]
        search, first, last = self._counted(counted, start, end)
        chunk = f"{column} - {column} % {CHUNK}"
        window = f"max(CASE WHEN kind = {WINDOW} THEN end_us - start_us ELSE 0 END)"
        columns = (
            "instance",
            "vpc_id",
            "run",
            chunk,
            f"min({column})",
            f"max({column})",
            f"count(DISTINCT {column})",
            window,
        )
        return self._select(search, columns, first, last, f" GROUP BY instance, vpc_id, run, {chunk}")

    def values(self, counted: Counted, key: Key, firsts: Sequence[int], start: int, end: int) -> list[int]:
        """Return the numbers of a run's chunks."""
        column = NUMBER_OF[counted]
        search, first, last = self._counted(counted, start, end)
        if not _RUN.fullmatch(key[2]):  # from a row, which whoever may write to the Logstore writes
            raise Error(
                f"{self._endpoint} {self.name}: run={show(key[2])} must be up to 64 letters, digits and hyphens"
            )
        found: set[int] = set()
        for begin in firsts:  # a chunk's are fewer than an answer may have
            here = f'({search}) and run: "{key[2]}" and {column} in [{begin} {begin + CHUNK - 1}]'
            found |= {int(row[0]) for row in self._select(here, (column,), first, last, f" GROUP BY {column}")}
        return sorted(found)

    def _counted(self, counted: Counted, start: int, end: int) -> tuple[str, int, int]:
        if counted == "sessions":
            return _SESSIONS, start, end
        if counted == "events":
            return _EVENTS, start, end
        return _BLOCKS if counted == "blocks" else _FACTS, 0, FOREVER

    def session_rows(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[list[Any]]:
        """Return the sessions' rows."""
        terms = [_SESSIONS]
        terms += [
            f"{name} = {value}" for name, value in (("nat_port", sought.port), ("protocol", sought.protocol))
            if value is not None
        ]  # fmt: skip
        if sought.inside is not None:
            terms.append(f'pri_ip: "{sought.inside}"')
        if sought.remote is not None:
            terms.append(f'(pub_ip: "{sought.remote}" or pub_ip: "{REDACTED}")')
        if sought.address is not None:
            terms.append(f'(nat_ip: "{sought.address}" or eip: "{sought.address}")')
        columns = ("instance", "vpc_id", "run", *(MICROSECONDS.get(name, name) for name in COLUMNS), *self._label)
        found = self._select(" and ".join(terms), columns, start, end)
        return [_numbers(row, ("", "", "", *COLUMNS, *self._label)) for row in found]

    def block_rows(self, sought: Sought, parts: Sequence[Part], start: int, end: int) -> list[list[Any]]:
        """Return the rows of port blocks."""
        search = _BLOCKS
        if sought.port is not None:
            search += f" and nat_port <= {sought.port} and pub_port >= {sought.port}"
        if sought.address is not None:
            search += f' and (nat_ip: "{sought.address}" or eip: "{sought.address}")'
        if sought.inside is not None:
            search += f' and pri_ip: "{sought.inside}"'
        names = ["pkts_from_vpc" if name == "number" else name for name in COLUMNS]
        columns = ("instance", "vpc_id", "run", *(MICROSECONDS.get(name, name) for name in names), *self._label)
        found = self._select(search, columns, start, end)
        return [_numbers(row, ("", "", "", *names, *self._label)) for row in found]

    def event_rows(self, start: int, end: int, inside: str | None) -> list[list[Any]]:
        """Return the rows of refusals and events."""
        of_inside = f'(kind in [{REFUSAL + 1} {EVENT_COVER}] or pri_ip: "{inside}" or pri_ip: "0.0.0.0")'
        columns = ("instance", "vpc_id", "run", *(MICROSECONDS.get(name, name) for name in EVENT_COLUMNS))
        search = _EVENTS if inside is None else f"{_EVENTS} and {of_inside}"
        found = [_numbers(row, ("", "", "", *EVENT_COLUMNS)) for row in self._select(search, columns, start, end)]
        return [row for row in found if start <= int(row[-1]) <= end]  # the service has seconds

    def _select(self, search: str, columns: Sequence[str], start: int, end: int, behind: str = "") -> list[list[str]]:
        """Return the columns of the logs that are found, of rows that ended from start to end (microseconds)."""
        first, last = max(0, start) // _SECOND, min(end, FOREVER) // _SECOND + 1
        named = ", ".join(f"{column} AS c{at}" for at, column in enumerate(columns))
        query = f"{search} | SELECT {named} FROM log{behind} LIMIT {MOST_ROWS}"
        try:
            with self._turn:
                answer = self._client.get_log(self._project, self._logstore, first, last, query=query)
        except self._error as error:
            code, text = error.get_error_code(), error.get_error_message()  # type: ignore[attr-defined]
            raise Error(f"{self._endpoint} {self.name}: {code}: {text}") from error
        if not answer.is_completed():
            raise Error(
                f"{self._endpoint} {self.name}: the service's answer is incomplete; ask again, or of a shorter time"
            )
        rows = [log.get_contents() for log in answer.get_logs()]
        if len(rows) >= MOST_ROWS:
            raise Error(f"{self._endpoint} {self.name}: more than {MOST_ROWS:,} rows; ask of a shorter time")
        try:
            return [[row[f"c{at}"] for at in range(len(columns))] for row in rows]
        except KeyError as error:
            raise Error(f"{self._endpoint} {self.name}: it is no Logstore of an SlsSink with rows='all'") from error


def _numbers(row: Sequence[str], names: Sequence[str]) -> list[Any]:
    """Return addresses as integers; the rest as it is."""
    return [
        int(parse_ipv4(value, name)) if name in ADDRESSES else value for value, name in zip(row, names, strict=True)
    ]
