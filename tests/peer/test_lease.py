"""Two gateways never translate both: votes under an adversarial network, clocks that drift, and restarts."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from natcore.peer.lease import DRIFT, Ballot, Candidate, Voter

DURATION = 0.3
NAMES = ("a", "b", "witness")


class World:
    """Two candidates and three voters; messages take any time, are lost, come twice and out of order."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = 0.0
        # each machine's clock runs at a rate of its own, from an origin of its own
        self.rates = {name: 1 + random.choice([-1, 0, 1]) * DRIFT / 2 for name in NAMES}
        self.origins = {name: random.uniform(0, 1e6) for name in NAMES}
        self.voters = {name: Voter(name, DURATION, self.clock(name)) for name in NAMES}
        self.candidates = {name: Candidate(name, NAMES, DURATION) for name in ("a", "b")}
        self.asked: list[tuple[str, str, int]] = []
        self.answers: list[tuple[str, Ballot]] = []
        self.returns: list[tuple[str, str, int]] = []
        self.translated: set[str] = set()
        self.eager = "a"  # who asks more often, for a while

    def strike(self, who: str) -> None:
        """One asks and is answered at once, as soon as two voters have their votes back by their own clocks."""
        for voter in self.random.sample(NAMES, 2):
            left = self.voters[voter]._until - self.clock(voter)
            if 0 < left < DURATION * 1.1:
                self.now += left / self.rates[voter] + 1e-6
        for voter in NAMES:
            turn = self.candidates[who].asks(voter, self.clock(who))
            self.candidates[who].hears(self.voters[voter].ask(who, turn, self.clock(voter)))

    def clock(self, name: str) -> float:
        return self.origins[name] + self.now * self.rates[name]

    def step(self) -> None:
        random, draw = self.random, self.random.random()
        if random.random() < 0.02:
            self.eager = random.choice("ab")
        if draw < 0.3:
            who = self.eager if random.random() < 0.8 else random.choice("ab")
            for voter in random.sample(NAMES, random.randrange(1, 4)):
                self.asked.append((who, voter, self.candidates[who].asks(voter, self.clock(who))))
        elif draw < 0.55 and self.asked:
            at = -1 if random.random() < 0.6 else random.randrange(len(self.asked))
            who, voter, turn = self.asked[at] if random.random() < 0.2 else self.asked.pop(at)
            self.answers.append((who, self.voters[voter].ask(who, turn, self.clock(voter))))
        elif draw < 0.8 and self.answers:
            at = -1 if random.random() < 0.6 else random.randrange(len(self.answers))
            who, ballot = self.answers[at] if random.random() < 0.2 else self.answers.pop(at)
            self.candidates[who].hears(ballot)
        elif draw < 0.82:
            who = random.choice("ab")
            candidate = self.candidates[who]
            candidate.gives_back()
            self.returns += [(who, voter, candidate.turn) for voter in NAMES]
        elif draw < 0.88 and self.returns:
            who, voter, turn = self.returns.pop(random.randrange(len(self.returns)))
            self.voters[voter].give_back(who, turn, self.clock(voter))
        elif draw < 0.885 and self.asked:
            self.asked.pop()
        elif draw < 0.89:  # a machine is started anew: it knows nothing
            name = random.choice(NAMES)
            self.voters[name] = Voter(name, DURATION, self.clock(name))
            if name in self.candidates:
                self.candidates[name] = Candidate(name, NAMES, DURATION)
                self.answers = [(who, ballot) for who, ballot in self.answers if who != name]
                self.asked = [each for each in self.asked if each[0] != name]
                self.returns = [each for each in self.returns if each[0] != name]
        elif draw < 0.93:
            self.strike(random.choice("ab"))
        else:
            self.now += random.choice([0.0001, 0.001, 0.01, 0.01, 0.05, 0.1, 0.4])
        may = [name for name, each in self.candidates.items() if each.may_translate(self.clock(name))]
        assert len(may) < 2, "both translate"
        self.translated.update(may)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 40))
@example(31_944)  # a request came again after a later one, and then what gave that one's vote back
def test_two_gateways_never_both_translate(seed: int) -> None:
    world = World(Random(seed))
    for _ in range(300):
        world.step()


def test_the_lives_above_reach_what_they_are_about() -> None:
    """Both gateways translate in them, one after the other."""
    reached = 0
    for seed in range(20):
        world = World(Random(seed))
        for _ in range(300):
            world.step()
        reached += world.translated == {"a", "b"}
    assert reached > 10


def held(candidate: Candidate, voters: dict[str, Voter], cut: set[frozenset[str]], now: float) -> bool:
    """One round of asking all voters that are not cut off; whether the candidate may translate."""
    for name, voter in voters.items():
        turn = candidate.asks(name, now)
        if frozenset((candidate.name, name)) not in cut:
            candidate.hears(voter.ask(candidate.name, turn, now))
    return candidate.may_translate(now)


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ({frozenset("ab")}, "a"),  # the line between the gateways: who translates goes on
        ({frozenset("ab"), frozenset(("a", "witness"))}, "b"),  # the active one is cut off from both
        ({frozenset(("a", "witness"))}, "a"),
        ({frozenset(("a", "witness")), frozenset(("b", "witness"))}, "a"),  # the witness is gone
        ({frozenset("ab"), frozenset(("a", "witness")), frozenset(("b", "witness"))}, None),
    ],
)
def test_whatever_line_is_cut_one_gateway_with_a_majority_goes_on(cut: set[frozenset[str]], left: str | None) -> None:
    voters = {name: Voter(name, DURATION, -1.0) for name in NAMES}
    a, b = Candidate("a", NAMES, DURATION), Candidate("b", NAMES, DURATION)
    assert held(a, voters, set(), 0.0)
    assert not held(b, voters, set(), 0.01)
    may: set[str] = set()
    for step in range(1, 60):
        now = step * 0.05
        may = {each.name for each in (a, b) if held(each, voters, cut, now)}
        assert len(may) < 2
    assert may == ({left} if left else set())


def test_a_vote_that_is_given_back_is_lent_at_once() -> None:
    voters = {name: Voter(name, DURATION, -1.0) for name in NAMES}
    a, b = Candidate("a", NAMES, DURATION), Candidate("b", NAMES, DURATION)
    assert held(a, voters, set(), 0.0)
    a.gives_back()
    assert not a.may_translate(0.0)
    for voter in voters.values():
        voter.give_back("a", a.turn, 0.01)
    assert held(b, voters, set(), 0.01)
    assert voters["witness"].holder(0.02) == "b"


def test_a_voter_tells_when_its_vote_is_back_and_lends_it_then() -> None:
    voter = Voter("witness", DURATION, -1.0)
    assert voter.ask("a", 1, 0.0).left == 0.0
    refused = voter.ask("b", 1, 0.1)
    assert not refused.granted
    assert refused.left == pytest.approx(0.2)
    assert not voter.ask("b", 2, 0.1 + refused.left - 0.001).granted
    assert voter.ask("b", 3, 0.1 + refused.left).granted


def test_a_voter_that_was_started_anew_waits() -> None:
    voters = {name: Voter(name, DURATION, 0.0) for name in NAMES}
    a = Candidate("a", NAMES, DURATION)
    assert not held(a, voters, set(), DURATION - 0.001)
    assert held(a, voters, set(), DURATION)


def test_a_late_answer_is_not_counted_from_when_it_came() -> None:
    voter, a = Voter("a", DURATION, -1.0), Candidate("a", ("a",), DURATION)
    turn = a.asks("a", 0.0)
    ballot = voter.ask("a", turn, 0.2)
    a.hears(ballot)
    assert a.may_translate(0.26)
    assert not a.may_translate(0.27)  # 0.3 less drift and margin, from when it asked
    b = Candidate("a", ("a",), DURATION)
    b.hears(Ballot("a", True, 1))
    assert not b.may_translate(0.0)  # it has not asked


def test_an_answer_that_comes_after_giving_back_counts_for_nothing() -> None:
    voter, a = Voter("a", DURATION, -1.0), Candidate("a", ("a",), DURATION)
    ballot = voter.ask("a", a.asks("a", 0.0), 0.0)
    a.gives_back()
    a.hears(ballot)
    assert not a.may_translate(0.0)
