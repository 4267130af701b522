"""What a reload of the configuration would do: found without changing anything, said in words, carried out whole or not at all.

Entries are matched with those in force: equal ones, then by name, then by all but the name, then by what one entry alone can
have (an SNAT entry's source; a DNAT entry's outside address, ports and protocol; both prefixes of a no-NAT entry). Session logs
are matched by name. What a running gateway cannot change needs a restart: then nothing is changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from natcore.config import AnyEntry, DnatEntry, Policy, Timeouts
from natcore.entries.changes import Add, Change, Modify, Remove, Replace
from natcore.entries.matching import match
from natcore.entries.table import EntryConflict, spaces
from natcore.entries.words import in_words, label, name_of
from natcore.errors import ConfigurationError, RestartNeededError
from natcore.gateway import Gateway
from natcore.internal.redaction import show
from natcore.service.configuration_file import LogSettings, Settings
from natcore.service.problems import Problems

if TYPE_CHECKING:
    from natcore.entries.changes import Plan
    from natcore.sessionlog.session_log import SessionLog

STOP_SECONDS = 10.0  # that a log which is stopped has for its deliveries


def _defaults(function: Callable[..., object]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.name != "self"}


_GATEWAY, _PLANE = _defaults(Gateway), _defaults(Gateway.forward)
_LIVE = ("policy", "timeouts")  # tables that a running gateway may take
# Tables of a file that a reload carries out key by key; a change of any other one needs a restart.
_COMPARED = {"gateway", "policy", "timeouts", "snat", "dnat", "no_nat", "log", "plane"}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a reload changes, or that needs a restart.

    what: "entry", "log" or "setting". action: "add", "replace", "remove"; "start", "change", "restart", "stop"; "set".
    name: what is changed, in words. before, after: what it was and becomes, in words; "": nothing. sessions: that an entry has
    now. drain: its sessions end by themselves.
    """

    what: str
    action: str
    name: str
    before: str = ""
    after: str = ""
    sessions: int | None = None
    drain: bool = False

    def __str__(self) -> str:
        text = f"{self.action} {'log ' if self.what == 'log' else ''}{self.name}"
        if self.what == "entry":
            text = f"{self.action} {self.name}: {' -> '.join(filter(None, (self.before, self.after)))}"
            text += " (drained)" if self.drain else ""
        elif self.before or self.after:
            text += f": {self.before or 'nothing'} -> {self.after or 'nothing'}"
        return text if self.sessions is None else f"{text}, {self.sessions:,} sessions"


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did, or would do.

    file: the configuration file. dry_run: nothing was changed. steps: what changes, in order. unchanged: how many entries and
    logs stay as they are. needs_restart: what keeps the reload from being carried out. kept, drained, ended: sessions.
    """

    file: str
    dry_run: bool
    steps: tuple[Step, ...]
    unchanged: int
    needs_restart: tuple[Step, ...]
    kept: int = 0
    drained: int = 0
    ended: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Planned:
    """A reload that has been found: the changes of entries, what becomes of each log, and what is said of them."""

    settings: Settings
    changes: tuple[Change, ...]
    start: tuple[LogSettings, ...]
    change: tuple[LogSettings, ...]
    restart: tuple[LogSettings, ...]
    stop: tuple[str, ...]
    steps: tuple[Step, ...]
    unchanged: int
    needs_restart: tuple[Step, ...]

    def said(self, *, dry_run: bool, plan: Plan | None, ended: int | None = None) -> Reloaded:
        """Return what it does; plan: of its changes; None: they were not planned. ended: sessions that did end."""
        kept, drained, would_end = (0, 0, 0) if plan is None else (plan.kept, plan.drained, plan.ended)
        return Reloaded(
            str(self.settings.source), dry_run, self.steps, self.unchanged, self.needs_restart,
            kept, drained, would_end if ended is None else ended,
        )  # fmt: skip


class RestartError(ConfigurationError):
    """A file asks for what only a restart brings; nothing was changed. steps: what."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        listed = "; ".join(f"{step.name}: {step.before or 'nothing'} -> {step.after or 'nothing'}" for step in steps)
        super().__init__(f"a restart is needed, and nothing was changed: {listed}")


def find(before: Settings, after: Settings, gateway: Gateway, running: Iterable[str]) -> Planned:
    """Return how the gateway comes from one file to another. running: the names of its session logs that run."""
    rows, counts = gateway.entries(), gateway.sessions_by_entry()
    pairs, fresh = match(rows, after.entries)
    changes: list[Change] = []
    steps: list[Step] = []
    wanted = [*(entry for _, entry in pairs if entry is not None), *fresh]
    for row, entry in pairs:
        sessions = counts.get(row.id, 0)
        name, was = name_of(row.entry), in_words(row.entry)
        if entry is None:
            drain = not any(_same_endpoint(row.entry, other) for other in wanted)
            changes.append(Remove(row, drain=drain))
            steps.append(Step("entry", "remove", name, was, sessions=sessions, drain=drain))
        elif entry != row.entry:
            changes.append(Replace(row, entry))
            becomes = in_words(entry)
            if row.entry.name != entry.name:
                was, becomes = f"{label(row.entry)} {was}", f"{label(entry)} {becomes}"
            steps.append(Step("entry", "replace", name, was, becomes, sessions))
    for entry in fresh:
        changes.append(Add(entry))
        steps.append(Step("entry", "add", name_of(entry), after=in_words(entry)))
    settings, needs_restart = _sort(list(_differences(before, after)), after, gateway)
    steps += settings
    if settings:
        changes.append(_modify(after))
    logs = _log_changes(before, after, set(running))
    steps += [Step("log", action, log if isinstance(log, str) else log.name) for action in logs for log in logs[action]]
    unchanged = sum(entry == row.entry for row, entry in pairs)
    unchanged += len(after.logs) - sum(len(logs[action]) for action in ("start", "change", "restart"))
    return Planned(
        after, tuple(changes), logs["start"], logs["change"], logs["restart"], logs["stop"], tuple(steps), unchanged,
        tuple(needs_restart),
    )  # fmt: skip


# ---- entries ---------------------------------------------------------------------------------------------------------


def _same_endpoint(entry: AnyEntry, other: AnyEntry) -> bool:
    """Return whether both have an outside endpoint in common: what drains would keep it from the other one."""
    if not isinstance(entry, DnatEntry) or not isinstance(other, DnatEntry) or entry.external_ip != other.external_ip:
        return False
    (first, last, _), (other_first, other_last, _) = entry.ports, other.ports
    return first <= other_last and other_first <= last and bool(set(spaces(entry)) & set(spaces(other)))


# ---- session logs ----------------------------------------------------------------------------------------------------


def _log_changes(before: Settings, after: Settings, running: set[str]) -> dict[str, tuple[Any, ...]]:
    """Return which logs are started, changed and restarted, and the names of those that are stopped."""
    known = {log.name: log for log in before.logs if log.name in running}
    changes: dict[str, list[Any]] = {"start": [], "change": [], "restart": [], "stop": []}
    for log in after.logs:
        old = known.get(log.name)
        if old is None:
            changes["start"].append(log)
        elif old.options != log.options:
            changes["restart"].append(log)
        elif (old.sink, old.arguments) != (log.sink, log.arguments):
            changes["change"].append(log)
    wanted = {log.name for log in after.logs}
    changes["stop"] += [name for name in known if name not in wanted]
    return {action: tuple(logs) for action, logs in changes.items()}


# ---- what needs a restart --------------------------------------------------------------------------------------------


def _modify(after: Settings) -> Modify:
    """Return the change that gives a running gateway the file's settings."""
    asked = _GATEWAY | after.gateway
    return Modify(
        policy=asked["policy"] or Policy(),
        timeouts=asked["timeouts"] or Timeouts(),
        eip_bind_mode=asked["eip_bind_mode"],
    )


def _sort(differences: list[Step], after: Settings, gateway: Gateway) -> tuple[list[Step], list[Step]]:
    """Return the differences that the running gateway can take, and those that need a restart."""
    live = [
        step for step in differences if step.name.partition(".")[0] in _LIVE or step.name == "gateway.eip_bind_mode"
    ]
    fixed: set[str] = set()
    if live:
        try:
            gateway.plan([_modify(after)])
        except RestartNeededError as error:
            fixed = {field.removeprefix("Policy.") for field in error.fields}
            if fixed & {"mapping", "filtering"}:  # maybe of one protocol alone
                fixed |= {"tcp", "udp", "icmp"}
        except ConfigurationError:
            pass  # entries that the new settings do not allow go with the same reload
    stuck = [step for step in differences if step not in live or step.name.rpartition(".")[2] in fixed]
    return ([step for step in live if step not in stuck] if not stuck else []), stuck


def _differences(before: Settings, after: Settings) -> Iterable[Step]:
    """Yield what differs besides entries and logs."""
    one, other = (_GATEWAY | settings.gateway for settings in (before, after))
    for name in one:
        if name in ("policy", "timeouts"):
            kind = Policy if name == "policy" else Timeouts
            yield from _of_fields(name, one[name] or kind(), other[name] or kind())
        elif one[name] != other[name]:
            yield _setting(f"gateway.{name}", one[name], other[name])
    planes = [_PLANE | (settings.plane or {}) for settings in (before, after)]
    for name in planes[0]:
        was, is_now = (_as_list(plane[name]) if name == "inside" else plane[name] for plane in planes)
        if was != is_now:
            yield _setting(f"plane.{name}", was, is_now)
    for table in sorted({*before.raw, *after.raw} - _COMPARED):
        if before.raw.get(table) != after.raw.get(table):
            yield _setting(table, before.raw.get(table), after.raw.get(table))


def _of_fields(table: str, one: Policy | Timeouts, other: Policy | Timeouts) -> Iterable[Step]:
    for name in type(one).__annotations__:
        if getattr(one, name) != getattr(other, name):
            yield _setting(f"{table}.{name}", getattr(one, name), getattr(other, name))


def _setting(key: str, before: object, after: object) -> Step:
    return Step("setting", "set", key, show(before, key), show(after, key))


def _as_list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


# ---- carrying it out -------------------------------------------------------------------------------------------------


def carry_out(planned: Planned, before: Settings, gateway: Gateway, logs: dict[str, SessionLog]) -> Reloaded:
    """Do it; return what was done. logs: those that run, by name; changed. With an error everything is as it was before.

    What may fail comes first: the plan, then logs are started and changed, which is undone. Then the entries change, in one
    moment. Logs that the file has no more are stopped last.
    """
    plan_of(planned, gateway)  # what is refused touches no log
    known = {log.name: log for log in before.logs}
    with ExitStack() as undo:
        for log in planned.start:
            _start(logs, log, gateway)
            undo.callback(_stop, logs, log.name, 0.0)
        for log in planned.restart:
            _stop(logs, log.name)
            undo.callback(_start, logs, known[log.name], gateway)
            _start(logs, log, gateway)
            undo.callback(_stop, logs, log.name)
        for log in planned.change:
            logs[log.name].change(log.make_sink())
            undo.callback(_change, logs, known[log.name])
        plan = plan_of(planned, gateway)
        with _conflicts_named(planned.settings):
            ended = gateway.apply(plan).ended
        undo.pop_all()
    for name in planned.stop:
        _stop(logs, name)
    return planned.said(dry_run=False, plan=plan, ended=ended)


def plan_of(planned: Planned, gateway: Gateway) -> Plan:
    """Return the plan of the entries' changes. Raises SettingsError: they conflict, or a port that one of them needs is held by
    a live mapping."""
    with _conflicts_named(planned.settings):
        plan = gateway.plan(planned.changes)
        if plan.conflict is not None:
            raise plan.conflict
        return plan


@contextmanager
def _conflicts_named(settings: Settings) -> Iterator[None]:
    try:
        yield
    except EntryConflict as error:
        for position, entry in enumerate(settings.entries):
            if entry is error.entry.entry:
                with Problems(settings.source).named(*settings.key_of(position)):
                    raise
        raise


def _start(logs: dict[str, SessionLog], log: LogSettings, gateway: Gateway) -> None:
    logs[log.name] = log.start(gateway)


def _stop(logs: dict[str, SessionLog], name: str, timeout: float = STOP_SECONDS) -> None:
    logs.pop(name).stop(timeout)


def _change(logs: dict[str, SessionLog], log: LogSettings) -> None:
    logs[log.name].change(log.make_sink())
