"""Scoped seeds: every random choice is a function of the master seed, the trial and its purpose."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def seed(master: int, *scope: str | int) -> int:
    """Derives a seed in [0, 2**31) for one purpose.

    Args:
        master: the run's seed.
        *scope: the purpose, for instance ``("trial", 12, "recovery")``.

    Returns:
        The same number for the same arguments, on every machine and Python version.
    """
    text = "/".join([str(master), *map(str, scope)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@contextmanager
def scoped(value: int) -> Iterator[None]:
    """Seeds python, numpy and torch inside the block and restores their states after it."""
    import torch  # here, because drivers of trials derive seeds without ever loading torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        seed_all(value)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def seed_all(value: int) -> None:
    """Seeds python, numpy and torch until the block of `scoped` around it ends."""
    import torch  # as above

    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def random_subset(size: int, count: int, value: int) -> list[int]:
    """Draws numbers without replacement.

    Args:
        size: numbers are drawn from 0 … size - 1.
        count: how many to draw; all of them if there are fewer.
        value: the seed. A smaller ``count`` gives the beginning of the same sequence.
    """
    subset: list[int] = np.random.default_rng(value).permutation(size)[:count].tolist()
    return subset
