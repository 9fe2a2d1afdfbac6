"""Boxes around segmentations, against pycocotools' masks."""

import numpy as np
import pytest
from pycocotools import mask

from autoprune.records.segmentation import box_around


@pytest.mark.parametrize(
    "polygon",
    [
        [[1, 2, 11, 2, 11, 8, 1, 8]],
        [1, 2, 11, 2, 11, 8, 1, 8],
        [["1", "2", 11.0, 2, 11, 8, 1, 8]],
        [[1, 2], [11, 2], [11, 8], [1, 8]],
        [[[1, 2], [11, 2], [11, 8], [1, 8]]],
        [[1, 2, 3, 2, 3, 4], [5, 5, 11, 8, 5, 8]],
    ],
)
def test_polygons(polygon):
    assert box_around(polygon) == (1, 2, 10, 6)


@pytest.mark.parametrize("seed", range(8))
def test_masks_have_the_box_that_pycocotools_finds(seed):
    random = np.random.default_rng(seed)
    pixels = np.zeros((23, 31), np.uint8)
    y, x = random.integers(0, 15, 2)
    pixels[y : y + 8, x : x + 6] = random.random(pixels[y : y + 8, x : x + 6].shape) < (0.1, 0.9)[seed % 2]
    pixels[y, x] = 1
    compressed = mask.encode(np.asfortranarray(pixels))
    expected = tuple(mask.toBbox(compressed).tolist())
    text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    assert box_around(text) == expected
    flat = pixels.T.ravel()  # down the columns
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    assert box_around({"size": [23, 31], "counts": [0, *counts] if flat[0] else counts}) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "",
        [],
        [[]],
        [[1, 2, 3]],
        [[1, 2, None, 4]],
        [["a"] * 6],
        [1, [2]],
        {},
        {"counts": "~~", "size": [3, 3]},
        {"counts": "0", "size": [3, 3]},
        {"counts": "P", "size": [3, 3]},
        {"counts": [4, -2], "size": [3, 3]},
        {"counts": [4, 20], "size": [3, 3]},
        {"counts": [9], "size": [3, 3]},
        {"counts": [1, 2], "size": [3]},
        {"counts": [1, 2], "size": [10**9, 10**9]},
        {"counts": {}, "size": [3, 3]},
    ],
)
def test_what_can_not_be_read_has_no_box(wrong):
    assert box_around(wrong) is None
