"""NatMachine: a sound data path passes, a wrong one does not, and what it says names what is wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from conformance.mutations import MUTANTS
from natcore import Policy, Side, SnatEntry
from natcore.testing import Checker, Configuration, NatMachine, Sent, craft, leaving, strategies
from natcore.testing.oracle import Nat

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "test.md"
LIVES = 20
ENDS = ("10.0.0.5", 5000), ("198.51.100.7", 53)
RIGHT = craft.ether(craft.udp(("203.0.113.1", 5000), ENDS[1], ttl=63))


def some(count: int) -> settings:
    """So many short lives, the same in every run."""
    return settings(
        max_examples=count, stateful_step_count=20, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def guides_machine() -> type[NatMachine]:
    """The one that the guide shows."""
    (block,) = (
        text for text in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.S | re.M) if "NatMachine" in text
    )
    assert len(block.strip().splitlines()) <= 10
    names: dict[str, type[NatMachine]] = {}
    exec(block, names)
    return names["Machine"]


def test_the_guides_machine_passes() -> None:
    """All lives that the mutants below get: what it says of them means something."""
    run_state_machine_as_test(guides_machine(), settings=some(LIVES))


@pytest.mark.parametrize("key, number, told", [
    ("4787-13a", 0, r"did not leave to the (in|out)side"),
    ("5508-8", 0, r"did not leave to the inside: ICMP"),
    ("6888-10", 0, r"events: \[\], expected"),
])  # fmt: skip
def test_the_guides_machine_says_what_is_wrong_with_a_mutant(key: str, number: int, told: str) -> None:
    """A few of those that `tests/runs/mutants.py --machine` puts under it."""
    with MUTANTS[key][number].at_work(), pytest.raises(AssertionError, match=told):
        run_state_machine_as_test(guides_machine(), settings=some(LIVES))


def keeping_identifications(of: Configuration) -> Configuration:
    return replace(of, options={**of.options, "policy": replace(of.options["policy"], ip_id="keep")})


class Oracle(NatMachine):
    """The oracle as a data path: it has to equal itself, and needs nothing of a gateway. It numbers no packets itself."""

    configurations = strategies.followable().map(keeping_identifications)

    def start(self, configuration: Configuration) -> None:
        self.nat = configuration.model()

    def translate(self, frame: bytes, side: Side, now: float) -> list[Sent]:
        verdict, out = self.nat.translate_one(frame, side, round(now * 1e9))
        return [*([] if out is None else [Sent(self.nat.egress(side, verdict), out)]), *self.made()]

    def advance(self, now: float) -> list[Sent]:
        self.nat.advance(round(now * 1e9))
        return self.made()

    def made(self) -> list[Sent]:
        frames = [Sent(made.send_to, made.frame) for made in self.nat.generated]
        self.nat.generated.clear()
        return frames


def test_a_data_path_that_is_no_gateway_is_followed_too() -> None:
    run_state_machine_as_test(Oracle, settings=some(4))


class Own(NatMachine):
    """What a user's data path may be asked to be can be narrowed."""

    configurations = st.just(Configuration([SnatEntry("10.0.0.0/16", pool="203.0.113.1")], {"max_sessions": 64}))

    def translate(self, frame: bytes, side: Side, now: float) -> list[Sent]:
        return [Sent(to, data[:-1] if len(data) > 60 else data) for to, data in leaving(self.gateway, frame, side, now)]


def test_a_failure_tells_the_life_and_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="what left is not as it must be") as failure:
        run_state_machine_as_test(Own, settings=some(20))
    told = "\n".join([str(failure.value), *getattr(failure.value, "__notes__", ())])
    assert "payload" in told or "checksum" in told
    assert "from inside: " in told and "Configuration(" in told


def configuration(**options: object) -> Configuration:
    return Configuration(
        [SnatEntry("10.0.0.0/16", pool="203.0.113.1")], {"max_sessions": 64, "policy": Policy(ip_id="keep"), **options}
    )


def test_a_checker_reads_the_endpoint_from_the_frame_and_holds_the_nat_to_it() -> None:
    checker = Checker(configuration())
    frame = craft.ether(craft.udp(*ENDS))
    out = craft.ether(craft.udp(("203.0.113.1", 4000), ENDS[1], ttl=63))
    other = craft.ether(craft.udp(("203.0.113.1", 4001), ENDS[1], ttl=63))
    assert checker.frame(frame, Side.INSIDE, 0.0, [(Side.OUTSIDE, out)]).name == "OUTBOUND"
    assert checker.frame(frame, Side.INSIDE, 1.0, [(Side.OUTSIDE, out)]).name == "OUTBOUND"
    with pytest.raises(AssertionError, match="source port: 4001, expected 4000"):
        checker.frame(frame, Side.INSIDE, 2.0, [(Side.OUTSIDE, other)])


@pytest.mark.parametrize("sent, told", [
    ([], "did not leave to the outside: UDP 203.0.113.1"),
    ([(Side.INSIDE, RIGHT)], "it left to the inside, expected the outside"),
    ([(Side.OUTSIDE, craft.ether(craft.udp(("203.0.113.9", 5000), ENDS[1], ttl=63)))], "not in the pool"),
    ([(Side.OUTSIDE, RIGHT)] * 2, "left to the outside, and must not"),
])  # fmt: skip
def test_what_is_wrong_is_told(sent: list[tuple[Side, bytes]], told: str) -> None:
    with pytest.raises(AssertionError) as failure:
        Checker(configuration()).frame(craft.ether(craft.udp(*ENDS)), Side.INSIDE, 0.0, sent)
    assert told in str(failure.value)


def test_ports_that_keep_every_parity_are_easy_to_guess() -> None:
    checker = Checker(configuration(max_sessions=1000))
    for port in range(5000, 5100):
        out = craft.ether(craft.udp(("203.0.113.1", port + 2000), ENDS[1], ttl=63))
        checker.frame(craft.ether(craft.udp((ENDS[0][0], port), ENDS[1])), Side.INSIDE, 0.0, [(Side.OUTSIDE, out)])
    with pytest.raises(AssertionError, match="all of 100 outside ports have the parity"):
        checker.finish()


def test_the_oracle_is_a_nat_by_itself() -> None:
    nat = Nat([SnatEntry("10.0.0.0/16", pool="203.0.113.1")])
    verdict, out = nat.translate_one(craft.ether(craft.udp(*ENDS)), Side.INSIDE, 0)
    assert verdict.name == "OUTBOUND" and out == craft.ether(craft.udp(("203.0.113.1", 5000), ENDS[1], ttl=63))
