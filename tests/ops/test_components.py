"""Connected components against merging sets by hand."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.ops.components import connected, hashed


def brute_force(size, pairs):
    """Smallest element of each component, by merging sets."""
    components = [{n} for n in range(size)]
    for a, b in pairs:
        one, other = (next(c for c in components if x in c) for x in (a, b))
        if one is not other:
            components.remove(other)
            one |= other
    return [min(next(c for c in components if n in c)) for n in range(size)]


PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PAIRS, PAIRS)
def test_components_are_those_of_brute_force(first, second):
    def arrays(pairs):
        return [
            (np.array([a for a, _ in pairs], dtype=np.int64), np.array([b for _, b in pairs], dtype=np.int64))
        ]

    once = connected(30, arrays(first))
    assert once.tolist() == brute_force(30, first)
    assert connected(30, arrays(second), once).tolist() == brute_force(30, [*first, *second])
    assert once.tolist() == brute_force(30, first)  # the start is not changed


def test_a_long_chain_is_one_component():
    order = np.random.default_rng(0).permutation(10_000)
    assert not connected(10_000, [(order[:-1], order[1:])]).any()


def test_hashes_of_numbers_differ():
    assert len(set(hashed(np.arange(-5_000, 5_000)).tolist())) == 10_000
