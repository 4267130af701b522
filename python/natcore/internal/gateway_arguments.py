"""A gateway's arguments, checked without making one: tables of its sizes are allocated only when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from natcore import choices
from natcore.config import Link, Policy, Timeouts
from natcore.internal.arguments import check_kinds, check_texts
from natcore.internal.hardware import memory_arguments
from natcore.internal.validation import MAX_TIME, check_choice, check_integer, check_number

if not TYPE_CHECKING:
    from natcore.internal.values import dataclass
else:
    from dataclasses import dataclass

MAX_WORKERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayArguments:
    """The arguments of `Gateway`, which says what each is; made, they are checked. Raises ConfigurationError."""

    instance: str
    vpc_id: str
    region: str
    kind: choices.Kind
    eip_bind_mode: choices.EipBindMode
    billing: choices.Billing
    max_sessions: int
    max_mappings: int | None
    max_subscribers: int | None
    workers: int
    window: float
    records: int
    epoch: float
    inside: Link | None
    outside: Link | None
    decrement_ttl: bool
    framing: choices.Framing
    timeouts: Timeouts | None
    policy: Policy | None
    seed: int | None
    huge_pages: choices.HugePages
    numa_node: int | None

    def __post_init__(self) -> None:
        check_texts(instance=self.instance, vpc_id=self.vpc_id, region=self.region)
        words: dict[str, tuple[Any, ...]] = {
            "kind": get_args(choices.Kind), "eip_bind_mode": get_args(choices.EipBindMode),
            "billing": get_args(choices.Billing), "framing": get_args(choices.Framing), "decrement_ttl": (True, False),
        }  # fmt: skip
        for name, allowed in words.items():
            self._set(name, check_choice(name, getattr(self, name), allowed))
        self._set("max_sessions", check_integer("max_sessions", self.max_sessions, 1, 1 << 30))
        for name in ("max_mappings", "max_subscribers"):
            if (value := getattr(self, name)) is not None:
                self._set(name, check_integer(name, value, 1, 1 << 30))
        self._set("workers", check_integer("workers", self.workers, 1, MAX_WORKERS))
        self._set("window", float(check_number("window", self.window, 1, 14_400, unit="seconds")))
        self._set("records", check_integer("records", self.records, 4, 1 << 26))
        self._set("epoch", check_number("epoch", self.epoch, -MAX_TIME, MAX_TIME, unit="seconds"))
        if self.seed is not None:
            self._set("seed", check_integer("seed", self.seed, -(1 << 127), 1 << 127))
        check_kinds(
            inside=(self.inside, Link), outside=(self.outside, Link), timeouts=(self.timeouts, Timeouts),
            policy=(self.policy, Policy),
        )  # fmt: skip
        memory_arguments(self.huge_pages, self.numa_node)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
