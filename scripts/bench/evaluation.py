"""COCOeval on a generated set of COCO's size: by pycocotools and by autoprune's default, in one run.

    python scripts/bench/evaluation.py --images 5000

Prints processor seconds (one thread), their ratio, and the largest difference of any number or AP of a class;
then those of the matches and of the bootstrap of mAP over the images, before and after both were vectorized.
"""

import argparse
import os
import time
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before hotcoco is imported

import numpy as np
from pycocotools.coco import COCO

from autoprune.data.evaluators import Evaluation, GroundTruth, Matches, run_cocoeval
from autoprune.data.standard_error import resampled_map

TIMED = 3  # resamples that are computed as before
CLASSES, BOXES, DETECTIONS, HITS = 80, 7, 100, 0.4
"""Classes; boxes of an image in the mean, and its detections; the part of these that is near a box."""


def generate(images: int, seed: int) -> tuple[COCO, np.ndarray]:
    """Boxes as many as in COCO's val2017, and a hundred detections an image, as a detector gives it."""
    draw = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    detections = []
    for image in range(1, images + 1):
        count = draw.poisson(BOXES)
        boxes = np.concatenate([draw.uniform(0, 500, (count, 2)), draw.lognormal(4, 0.9, (count, 2))], 1)
        classes = draw.integers(1, CLASSES + 1, count)
        for box, category in zip(boxes.tolist(), classes.tolist(), strict=True):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box,
                "area": box[2] * box[3], "iscrowd": int(draw.random() < 0.01),
            })  # fmt: skip
        rows = np.concatenate(
            [draw.uniform(0, 500, (DETECTIONS, 2)), draw.lognormal(4, 0.9, (DETECTIONS, 2))], 1
        )
        kinds = draw.integers(1, CLASSES + 1, DETECTIONS)
        near = np.flatnonzero(draw.random(DETECTIONS) < HITS) if count else np.zeros(0, int)
        of = draw.integers(0, max(count, 1), len(near))
        if count:
            rows[near] = boxes[of] + draw.normal(0, 0.1, (len(near), 4)) * boxes[of][:, [2, 3, 2, 3]]
            kinds[near] = classes[of]
        rows[:, 2:] = rows[:, 2:].clip(1)
        scores = draw.random(DETECTIONS).round(4)  # with ties
        detections.append(np.column_stack([np.full(DETECTIONS, image), rows, scores, kinds]))
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image, "width": 640, "height": 480} for image in range(1, images + 1)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco, np.concatenate(detections)


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    coco, detections = generate(arguments.images, arguments.seed)
    ids = sorted(coco.imgs)
    truth = GroundTruth(coco)
    run_cocoeval(truth, detections[:100], ids)  # indexes the boxes, which is done once for all evaluations
    seconds: dict[str, float] = {}
    results: dict[str, Evaluation] = {}
    for evaluator in ("hotcoco", "pycocotools"):
        start = time.process_time()
        results[evaluator] = run_cocoeval(truth, detections, ids, evaluator)
        seconds[evaluator] = time.process_time() - start
    fast, reference = results["hotcoco"], results["pycocotools"]
    difference = max(
        np.abs(fast.stats - reference.stats).max(), np.abs(fast.precision - reference.precision).max()
    )
    print(f"{len(detections)} detections on {len(ids)} images with {len(coco.anns)} boxes")
    print(f"ratio {seconds['pycocotools'] / seconds['hotcoco']:.0f}, max difference {difference:g}")
    for evaluator, value in seconds.items():
        print(f"{evaluator}: {value:.2f} s of one processor")
    bootstrap(truth, detections, ids, arguments.resamples)


def bootstrap(truth: GroundTruth, detections: np.ndarray, ids: list[int], resamples: int) -> None:
    """Prints what the matches and the mAP of all resamples take, and took: of these, a few are timed."""
    start = time.process_time()
    plain = truth.cocoeval(detections, ids, "hotcoco")
    plain.params.areaRng, plain.params.areaRngLbl = [[0, 1e10]], ["all"]
    plain.evaluate()
    assert plain.evalImgs
    dictionaries_s = time.process_time() - start
    start = time.process_time()
    matches = truth.matches(detections, ids)
    matches_s = time.process_time() - start
    drawn = np.random.default_rng(0).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), resamples)
    start = time.process_time()
    maps = resampled_map(matches, drawn)
    maps_s = time.process_time() - start
    start = time.process_time()
    reference = [one_resample(matches, counts) for counts in drawn[:TIMED]]
    loop_s = (time.process_time() - start) * resamples / TIMED
    difference = np.abs(maps[:TIMED] - reference).max()
    print(f"matches: {matches_s:.2f} s, before {dictionaries_s:.1f} s")
    print(f"{resamples} resamples: {maps_s:.2f} s, before {loop_s:.0f} s, max difference {difference:g}")


def one_resample(matches: Matches, counts: np.ndarray) -> float:
    """The mAP on one resample, class by class, as autoprune computed it before."""
    values = []
    for each in matches.by_class:
        if not (boxes := int(counts @ each.boxes)):
            continue
        weight = counts[each.image].astype(np.float64)
        true, false = (np.cumsum(kind * weight, 1) for kind in (each.true_positive, each.false_positive))
        recall, precision = true / boxes, true / (true + false + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
        at = [np.searchsorted(row, matches.recalls, side="left") for row in recall]
        values.append(np.mean([row[place] for row, place in zip(best, at, strict=True)]))
    return float(np.mean(values))


if __name__ == "__main__":
    main()
