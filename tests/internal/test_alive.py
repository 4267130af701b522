"""What a module keeps track of without keeping it."""

from __future__ import annotations

from natcore.internal.alive import Alive


class Thing:
    pass


def test_what_is_added_and_collected_while_it_is_looked_at_breaks_nothing() -> None:
    alive: Alive[Thing] = Alive()
    kept = [Thing() for _ in range(10)]
    for thing in kept:
        alive.add(thing)
    seen = []
    for thing in alive:
        seen.append(id(thing))
        kept.append(Thing())
        alive.add(kept[-1])
        if thing is not kept[1]:
            del kept[1]
    assert len(seen) == len(set(seen)) and set(map(id, alive)) == set(map(id, kept))


def test_what_is_discarded_cleared_or_gone_is_not_there() -> None:
    alive: Alive[Thing] = Alive()
    first, second = Thing(), Thing()
    alive.add(first)
    alive.add(second)
    alive.add(Thing())
    alive.discard(first)
    alive.discard(first)
    assert list(alive) == [second]
    alive.clear()
    assert not list(alive)
