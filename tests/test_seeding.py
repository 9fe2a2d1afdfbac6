import hashlib
import random

import numpy as np
import pytest
import torch

from autoprune.seeding import random_subset, scoped, seed


def seed_everything(value):
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_scoped_repeats_inside_and_restores_outside():
    with scoped(5):
        first = draw()
    seed_everything(1)
    expected_outside = draw()
    seed_everything(1)
    with scoped(5):
        assert draw() == first
    assert draw() == expected_outside


def test_seeds_differ_by_every_part_of_their_scope():
    scopes = [(0,), (1,), (0, "trial", 1), (0, "trial", 11), (0, "trial", 1, "recovery"), (0, "space")]
    values = [seed(*scope) for scope in scopes]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**31 for value in values)


def test_seeds_do_not_depend_on_the_process():
    # Python's own hash() of a string does; this is sha256("7/trial/3")[:4] >> 1, computed another way.
    assert seed(7, "trial", 3) == int(hashlib.sha256(b"7/trial/3").hexdigest()[:8], 16) // 2


def test_the_states_come_back_after_an_error():
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    with pytest.raises(ValueError, match="inside"), scoped(5):
        raise ValueError("inside")
    assert draw() == expected


@pytest.mark.parametrize(("size", "count"), [(10, 3), (10, 10), (3, 10), (5, 0), (0, 4)])
def test_a_subset_begins_a_seeded_permutation(size, count):
    # Runs that were started before are resumed with the same images.
    expected = np.random.default_rng(7).permutation(size)[:count]
    subset = random_subset(size, count, 7)
    assert subset == expected.tolist()
    assert all(type(number) is int for number in subset)
    assert len(set(subset)) == min(size, count)
