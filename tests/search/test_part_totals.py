"""Decoding, by counting by hand which images a search takes and which memory holds."""

from types import SimpleNamespace

import pytest

from autoprune.config import make_config
from autoprune.search.part_totals import decoding


class Images:
    def __init__(self, count):
        self.sizes = [(100, 100)] * count

    def __len__(self):
        return len(self.sizes)


def task(**settings):
    config = make_config(rungs=(0, 4), batch_size=2, importance_images=3, reconstruct_images=2, **settings)
    return SimpleNamespace(config=config, train=Images(50), val=Images(10), proxy_images=10)


RECORDS = [SimpleNamespace(rungs=({}, {})), SimpleNamespace(rungs=({},))]


def test_where_all_fit_each_image_is_decoded_once():
    once = 3 + 2 + 4 * 2 + 10  # importance, reconstruction, training, validation
    assert decoding(task(), RECORDS, 0.5).seconds == pytest.approx(0.5 * once)


def test_a_small_set_is_decoded_once_whatever_is_drawn_from_it():
    small = task()
    small.train = Images(6)
    assert decoding(small, RECORDS, 0.5).seconds == pytest.approx(0.5 * (6 + 10))


def test_without_memory_every_use_is_decoded():
    part = decoding(task(image_cache_gib=0.0), RECORDS, 0.5)
    train = 3 + 2 + 4 * 2  # of the one trial that reached the second rung
    val = 10 * (1 + 3)  # the dense detector, and three rungs
    assert part.seconds == pytest.approx(0.5 * (train + val))
    assert "image-cache-gib" in part.lower
