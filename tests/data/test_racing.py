import numpy as np
import pytest

from autoprune.data.racing import ERROR, LEAST, RaceOrder, is_beaten, prefix_maps
from autoprune.data.rivals import RESAMPLES

from .test_standard_error import data_set, matches_of, pycocotools_map


def test_the_order_is_of_the_seed_and_looks_are_whole_batches():
    order = RaceOrder.make(500, 8, seed=3)
    assert order == RaceOrder.make(500, 8, seed=3) != RaceOrder.make(500, 8, seed=4)
    assert sorted(order.images) == list(range(500))
    assert order.looks[0] >= LEAST
    assert order.looks[-1] == 500
    assert all(look % 8 == 0 for look in order.looks[:-1])
    assert list(order.looks) == sorted(set(order.looks))


@pytest.mark.parametrize("images", [1, 8, LEAST, LEAST + 8])
def test_few_images_are_not_raced(images):
    assert RaceOrder.make(images, 8, seed=0) is None


def test_prefix_maps_are_those_of_the_prefix_and_of_its_resamples():
    """By brute force: COCOeval on data sets in which images are really repeated."""
    truths, detections = data_set(12, seed=2)
    matches = matches_of(truths, detections, list(range(1, 13)))
    prefix = [7, 2, 9, 0, 4]
    maps = prefix_maps(matches, prefix, look=1)
    assert maps.shape == (1 + RESAMPLES,)
    counts = np.zeros(12, int)
    counts[prefix] = 1
    assert maps[0] == pytest.approx(pycocotools_map(truths, detections, counts), abs=1e-7)
    drawn = np.random.default_rng([1, 5]).multinomial(5, [0.2] * 5, RESAMPLES)
    for row in (0, 7):
        counts[prefix] = drawn[row]
        assert maps[1 + row] == pytest.approx(pycocotools_map(truths, detections, counts), abs=1e-7)
    # images beyond the prefix make no difference
    only = [row for row in detections if row[0] - 1 in prefix]
    assert prefix_maps(matches_of(truths, only, list(range(1, 13))), prefix, 1) == pytest.approx(maps)


def test_a_detector_that_is_no_worse_is_given_up_as_seldom_as_promised():
    """With normal scores of each image for mAP, whose mean over all images is the same for both."""
    random = np.random.default_rng(0)
    images, looks = 400, (56, 112, 168, 224, 280, 336, 400)
    wrong = 0
    for _ in range(1500):
        values = random.normal(0, 0.3, images)
        values -= values.mean()  # no worse on all images
        wrong += any(beaten_at(values, look, looks, random) for look in range(len(looks)))
    assert wrong / 1500 <= 1.3 * ERROR


def test_one_that_is_clearly_worse_is_given_up_early_and_none_at_the_end():
    random = np.random.default_rng(1)
    values, looks = random.normal(-0.2, 0.3, 400), (56, 112, 400)
    assert beaten_at(values, 0, looks, random)
    assert not beaten_at(values, 2, looks, random)
    assert not beaten_at(-values, 0, looks, random)


def beaten_at(values, look, looks, random):
    """Whether one whose scores differ from the rival's by ``values`` is beaten after a part of them."""
    seen = values[: looks[look]]
    resampled = random.choice(seen, (RESAMPLES, len(seen))).mean(1)
    return is_beaten(np.array([seen.mean(), *resampled]), np.zeros(1 + RESAMPLES), look, looks)


def test_without_boxes_nothing_is_known():
    assert not is_beaten(np.full(1 + RESAMPLES, np.nan), np.zeros(1 + RESAMPLES), 0, (32, 64))
