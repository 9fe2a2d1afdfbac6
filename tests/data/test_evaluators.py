"""hotcoco's numbers are pycocotools', on generated data sets of every odd kind.

`AUTOPRUNE_FUZZ=1000 pytest tests/data/test_evaluators.py -n 0` tries more of them.
"""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from autoprune.data.evaluators import NONE, GroundTruth, run_cocoeval
from autoprune.data.standard_error import resampled_map

EXAMPLES = int(os.environ.get("AUTOPRUNE_FUZZ", "60"))
IDS = [[1, 2, 3, 4, 5], [7, 0, 3, 2**53, 11], [-4, 12, -1, 0, 9]]


def truth_of(images, categories, annotations):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": each, "width": 640, "height": 480} for each in images],
        "categories": [{"id": each, "name": f"class {each}"} for each in categories],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def draw_set(seed, ids, scores, many):
    """Images, categories, annotations and detections: some images and classes have none of them.

    Args:
        scores: how many different ones there are, so that few make ties.
        many: whether an image has more detections than count.
    """
    draw = np.random.default_rng(seed)
    images, categories = ids[: draw.integers(1, 6)], ids[: draw.integers(1, 4)]
    annotations, rows = [], []

    def detect(image, box):
        rows.append((image, *box, round(draw.random() * scores) / scores, draw.choice(categories)))

    for image in images:
        for _ in range(draw.integers(0, 10)):
            box = np.array([*draw.integers(0, 400, 2), *draw.integers(1, 200, 2)], float)
            area = box[2] * box[3] if draw.random() < 0.7 else float(draw.integers(1, 20_000))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(draw.choice(categories)),
                "bbox": box.tolist(), "area": area, "iscrowd": int(draw.random() < 0.2),
            })  # fmt: skip
            for _ in range(draw.integers(0, 4)):
                near = box + draw.normal(0, draw.choice([0, 2, 10]), 4)
                detect(image, (*near[:2], *near[2:].clip(0.5)))
        if many and draw.random() < 0.5:
            for _ in range(130):
                detect(image, (*draw.integers(0, 300, 2), *draw.integers(1, 200, 2)))
    rows = np.array(rows, float).reshape(-1, 7)
    return images, categories, annotations, draw.permutation(rows)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    ids=st.sampled_from(IDS),
    scores=st.sampled_from([3, 50, 10**6]),
    many=st.booleans(),
    some=st.booleans(),
)
def test_both_libraries_give_the_same_numbers(seed, ids, scores, many, some):
    images, categories, annotations, rows = draw_set(seed, ids, scores, many)
    truth = GroundTruth(truth_of(images, categories, annotations))
    chosen = images[: max(1, len(images) - 1)] if some else images
    fast, reference = (
        run_cocoeval(truth, rows, chosen, evaluator, matches=True) for evaluator in ("hotcoco", "pycocotools")
    )
    assert len(fast.stats) == 12
    np.testing.assert_allclose(fast.stats, reference.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(fast.precision, reference.precision, rtol=0, atol=1e-12)
    assert fast.category_ids == reference.category_ids == sorted(categories)
    counts = np.random.default_rng(seed).multinomial(len(chosen), [1 / len(chosen)] * len(chosen), size=3)
    resampled = (resampled_map(each.matches, counts) for each in (fast, reference))
    np.testing.assert_allclose(*resampled, rtol=0, atol=1e-12)  # the same matches


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_no_detections_and_those_of_unknown_classes_or_images(evaluator):
    box = {"id": 1, "image_id": 5, "category_id": 2, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    truth = GroundTruth(truth_of([5, 6], [2, 4], [box]))
    hit = [5, 1, 1, 9, 9, 0.5, 2]
    unknown = [[5, 1, 1, 9, 9, 0.9, 3], [7, 1, 1, 9, 9, 0.9, 2], [5, 1, 1, 9, 9, 0.9, -2]]
    assert run_cocoeval(truth, NONE, [5, 6], evaluator).stats[0] == 0
    assert run_cocoeval(truth, np.array([hit, *unknown], float), [5, 6], evaluator).stats[0] == pytest.approx(
        1
    )
    assert run_cocoeval(truth, np.array([hit], float), [6], evaluator).stats[0] == -1
