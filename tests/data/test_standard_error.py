import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autoprune.data.evaluators import GroundTruth, run_cocoeval
from autoprune.data.standard_error import bootstrap_maps, paired_error, resampled_map, standard_error


def data_set(images=9, seed=0):
    """Boxes of three classes, one of them rare, with some crowds; detections near them, some spurious."""
    random = np.random.default_rng(seed)
    truths, detections = [], []
    for image in range(1, images + 1):
        for _ in range(random.integers(0, 5)):
            kind = int(random.choice([1, 2, 3], p=[0.6, 0.35, 0.05]))
            box = [*random.uniform(0, 60, 2), *random.uniform(8, 40, 2)]
            truths.append((image, kind, box, bool(random.random() < 0.1)))
            for _ in range(random.integers(0, 3)):
                moved = [value + random.normal(0, 2) for value in box]
                detections.append((image, kind, moved, float(random.random())))
        detections.append((image, int(random.integers(1, 4)), [5, 5, 20, 20], float(random.random())))
    return truths, detections


def coco_of(rows, images, scored):
    coco = COCO()
    annotations = [
        {
            "id": number, "image_id": image, "category_id": kind, "bbox": box, "area": box[2] * box[3],
            **({"score": last, "iscrowd": 0} if scored else {"iscrowd": int(last)}),
        }
        for number, (image, kind, box, last) in enumerate(rows, 1)
    ]  # fmt: skip
    coco.dataset = {
        "images": [{"id": image, "width": 120, "height": 120} for image in images],
        "categories": [{"id": kind, "name": str(kind)} for kind in (1, 2, 3)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def rows_of(detections):
    rows = [(image, *box, score, kind) for image, kind, box, score in detections]
    return np.array(rows, float).reshape(-1, 7)


def matches_of(truths, detections, images, evaluator="hotcoco"):
    truth = GroundTruth(coco_of(truths, images, False))
    return run_cocoeval(truth, rows_of(detections), images, evaluator, matches=True).matches


def evaluated(truths, detections, images):
    with contextlib.redirect_stdout(io.StringIO()):
        result = COCOeval(coco_of(truths, images, False), coco_of(detections, images, True), "bbox")
        result.params.imgIds = images
        result.evaluate()
    return result


def pycocotools_map(truths, detections, counts):
    """COCOeval's own number on a data set in which images are really repeated."""
    many_truths, many_detections, images = [], [], []
    for image, times in enumerate(counts, 1):
        for _ in range(times):
            images.append(len(images) + 1)
            many_truths += [(images[-1], *rest) for number, *rest in truths if number == image]
            many_detections += [(images[-1], *rest) for number, *rest in detections if number == image]
    result = evaluated(many_truths, many_detections, images)
    with contextlib.redirect_stdout(io.StringIO()):
        result.accumulate()
        result.summarize()
    return result.stats[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_resampled_maps_are_those_of_data_sets_with_repeated_images(evaluator, seed):
    truths, detections = data_set(seed=seed)
    result = matches_of(truths, detections, list(range(1, 10)), evaluator)
    random = np.random.default_rng(seed)
    counts = np.array([np.ones(9, int), *random.multinomial(9, np.full(9, 1 / 9), size=6)])
    expected = [pycocotools_map(truths, detections, row) for row in counts]
    assert resampled_map(result, counts) == pytest.approx(expected, abs=1e-7)


def test_the_error_is_the_deviation_of_the_resamples_and_falls_with_the_number_of_images():
    errors = []
    for images in (8, 128):
        truths, detections = data_set(images, seed=1)
        result = matches_of(truths, detections, list(range(1, images + 1)))
        errors.append(standard_error(bootstrap_maps(result, resamples=60)))
        assert standard_error(bootstrap_maps(result, resamples=60)) == errors[-1]
    assert 0.01 < errors[1] < 0.6 * errors[0]


def test_no_boxes_in_a_resample_give_no_number_and_one_image_no_error():
    truths, detections = [(1, 1, [0, 0, 10, 10], False)], [(1, 1, [0, 0, 10, 10], 0.5)]
    result = matches_of(truths, detections, [1, 2])
    values = resampled_map(result, np.array([[2, 0], [0, 2], [1, 1]]))
    assert values == pytest.approx([1, np.nan, 1], nan_ok=True)
    assert standard_error(bootstrap_maps(result)) == pytest.approx(0)
    assert standard_error(bootstrap_maps(matches_of(truths, detections, [1]))) == 0


def test_the_paired_error_is_that_of_the_difference_on_the_same_images():
    """By brute force: both detectors on the same data sets with repeated images."""
    truths, detections = data_set(12, seed=4)
    others = [(image, kind, box, 1 - score) for image, kind, box, score in detections]
    images = list(range(1, 13))
    first, second = (
        bootstrap_maps(matches_of(truths, rows, images), resamples=8) for rows in (detections, others)
    )
    drawn = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=8)
    differences = [
        pycocotools_map(truths, detections, row) - pycocotools_map(truths, others, row) for row in drawn
    ]
    assert paired_error(first, second) == pytest.approx(np.std(differences, ddof=1), abs=1e-7)
    assert paired_error(first, first) == 0
    assert paired_error([], []) == 0
