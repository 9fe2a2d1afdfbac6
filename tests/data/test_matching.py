"""Matches are those that COCOeval itself records."""

import numpy as np
import pytest

from autoprune.data.evaluators import GroundTruth

from .test_evaluators import IDS, draw_set, truth_of


@pytest.mark.parametrize("seed", range(40))
def test_matches_are_cocoevals(seed):
    images, categories, annotations, rows = draw_set(
        seed, IDS[seed % len(IDS)], scores=[3, 10**6][seed % 2], many=seed % 3 == 0
    )
    if seed % 5 == 0:  # a box too large to count
        annotations.append({
            "id": 999, "image_id": images[0], "category_id": categories[0], "bbox": [0, 0, 300, 300],
            "area": 2e10, "iscrowd": 0,
        })  # fmt: skip
    truth = GroundTruth(truth_of(images, categories, annotations))
    ours, theirs = (truth.matches(rows, images, evaluator) for evaluator in ("hotcoco", "pycocotools"))
    assert ours.images == theirs.images == len(images)
    for mine, reference in zip(ours.by_class, theirs.by_class, strict=True):
        assert mine.boxes.tolist() == reference.boxes.tolist()
        assert mine.image.tolist() == reference.image.tolist()
        if len(mine.image):
            assert np.array_equal(mine.true_positive, reference.true_positive)
            assert np.array_equal(mine.false_positive, reference.false_positive)
