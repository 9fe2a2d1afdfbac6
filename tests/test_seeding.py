import random

import numpy as np
import torch

from autoprune.seeding import scoped, seed


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
    # Python's own hash() of a string does; this is sha256("7/trial/3")[:4] >> 1, worked out by hand.
    import hashlib

    assert seed(7, "trial", 3) == int(hashlib.sha256(b"7/trial/3").hexdigest()[:8], 16) // 2
