"""Cut, dead and constant groups against a brute-force walk over small networks drawn at random."""

import itertools
import random

import pytest

from autoprune.graph.signal_paths import PathOp, PathRead, SignalPaths
from autoprune.tracing.signal_record import INPUT


def network(seed):
    """Ops in a row: each makes a group of its own from the results of one or two before it."""
    choose = random.Random(seed)
    names = [f"g{n}" for n in range(6)]
    makers = [sorted(set(choose.choices([INPUT, *range(n)], k=2))) for n in range(len(names))]

    def axes(source):
        return () if source == INPUT else (frozenset({names[source]}),)

    def read(source):
        return PathRead((source,), axes(source), frozenset().union(*axes(source)))

    ops = [
        PathOp(tuple(map(read, sources)), ((frozenset({name}),),), frozenset({name}), None)
        for name, sources in zip(names, makers, strict=True)
    ]
    last = PathOp((read(4), read(5)), ((),), frozenset(), "head")
    return names, makers, SignalPaths((*ops, last), (PathRead((6,), (), frozenset()),))


def reached(makers, emptied):
    """The ops whose result depends on the input."""
    result = set()
    for n, sources in enumerate(makers):
        if n not in emptied and any(s == INPUT or s in result for s in sources):
            result.add(n)
    return result


def needed(makers, emptied):
    """The ops that the head depends on."""
    result = {n for n in (4, 5) if n not in emptied}
    for n in reversed(range(len(makers))):
        if n in result:
            result |= {s for s in makers[n] if s != INPUT and s not in emptied}
    return result


@pytest.mark.parametrize("seed", range(8))
def test_against_a_walk_over_every_set(seed):
    names, makers, paths = network(seed)
    sets = [set(s) for n in range(7) for s in itertools.combinations(range(6), n)]
    used = reached(makers, set()) & needed(makers, set())
    assert paths.used() == {names[n] for n in used}
    emptied = {name: sum(1 << k for k, s in enumerate(sets) if n in s) for n, name in enumerate(names)}
    dead = paths.closed(emptied, len(sets), (), [names[n] for n in used])
    both = paths.closed(emptied, len(sets), [names[n] for n in used], [names[n] for n in used])
    for k, chosen in enumerate(sets):
        cut = paths.cut([names[n] for n in chosen])
        assert (cut is None) == bool(reached(makers, chosen) & ({4, 5} - chosen))
        assert cut in (None, "`head` sees", "an output of the model depends on")
        assert {n for n in range(6) if dead.get(names[n], 0) >> k & 1} == (
            chosen | (used - needed(makers, chosen)) if chosen else set()
        )
        closed = set(chosen)
        while chosen and (more := used - (needed(makers, closed) & reached(makers, closed)) - closed):
            closed |= more
        assert {n for n in range(6) if both.get(names[n], 0) >> k & 1} == closed


def test_the_dead_come_with_what_they_serve():
    names, _, paths = network(0)
    assert set(paths.without_dead([names[5]], names)) >= {names[5]}
    assert paths.without_dead([names[5]], []) == [names[5]]
