"""COCOeval by either of two libraries: hotcoco, which is some fifty times as fast, or pycocotools itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autoprune.data.annotations import silence
from autoprune.data.matching import Boxes, ClassMatches, class_matches, match
from autoprune.errors import ConfigError
from autoprune.fields import Evaluator

Detections: TypeAlias = NDArray[np.float64]
"""One detection a row, as COCO's `loadRes` takes them: ``image_id``, x, y, width, height, score, category_id.

Shape [n, 7]. Boxes are in stored pixels, ids are COCO's.
"""
IMAGE, SCORE, CATEGORY = 0, 5, 6
"""Columns of `Detections`; those of the box are `BOX`."""
BOX = slice(1, 5)
NONE: Detections = np.zeros((0, 7))
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
"""COCOeval's IoUs, and the recalls at which it reads the precision."""


@dataclass(frozen=True)
class Evaluation:
    """What COCOeval makes of detections, whichever library ran it.

    Attributes:
        stats: its twelve numbers; -1 where the data has no such boxes.
        precision: of all areas and with the most detections, [IoUs, recalls, categories]; -1 likewise.
        category_ids: of the last axis.
        matches: which detections match which boxes; see `Matches`.
    """

    stats: NDArray[np.float64]
    precision: NDArray[np.float64]
    category_ids: Sequence[int]
    matches: "Matches | None" = None


@dataclass(frozen=True)
class Matches:
    """The matches of detections with boxes, over all box sizes and with the most detections.

    Attributes:
        images: number of images.
        recalls: at which the precision is read.
        by_class: of each category.
    """

    images: int
    recalls: NDArray[np.float64]
    by_class: Sequence[ClassMatches]


def check_evaluator(evaluator: Evaluator) -> Any:
    """Imports the library that runs COCOeval.

    Raises:
        ConfigError: hotcoco, in Rust, can't be imported on this machine; pycocotools can take its place.
    """
    try:
        return import_module(evaluator)
    except ImportError as error:
        raise ConfigError(
            f"{evaluator} can't be imported ({error}); reinstall it with `pip install --force-reinstall "
            f"{evaluator}`, or take --evaluator pycocotools (YAML: evaluator), which gives the same numbers"
        ) from error


def run_cocoeval(
    truth: "GroundTruth",
    detections: Detections,
    image_ids: Sequence[int],
    evaluator: Evaluator = "hotcoco",
    matches: bool = False,
) -> Evaluation:
    """Runs COCOeval on boxes.

    Args:
        truth: the true boxes.
        detections: [n, 7]; see `Detections`.
        image_ids: of the evaluated images.
        evaluator: the library.
        matches: tell which detections match, too.
    """
    with silence():
        result = truth.cocoeval(detections, image_ids, evaluator)
        result.evaluate()
        result.accumulate()
        result.summarize()
        return Evaluation(
            stats=np.asarray(result.stats, np.float64),
            precision=np.asarray(result.eval["precision"])[:, :, :, 0, -1],
            category_ids=truth.category_ids,
            matches=truth.matches(detections, image_ids, evaluator) if matches else None,
        )


class GroundTruth:
    """The true boxes of a split, indexed once for each library.

    Args:
        coco: pycocotools' index of them.

    Attributes:
        category_ids: of all classes, in ascending order.
    """

    def __init__(self, coco: COCO) -> None:
        self._coco = coco
        self._indexed: Any = None  # hotcoco's index, once it is needed
        self._image_ids = sorted(coco.imgs)
        self.category_ids: list[int] = sorted(coco.cats)

    def cocoeval(self, detections: Detections, image_ids: Sequence[int], evaluator: Evaluator) -> Any:
        """A library's COCOeval of detections on some images, before it ran."""
        if evaluator == "pycocotools":
            result = COCOeval(self._coco, _as_coco(self._coco, detections), "bbox")
            result.params.imgIds = list(image_ids)
            return result
        hotcoco = check_evaluator(evaluator)
        if self._indexed is None:
            self._indexed = self._index(hotcoco)
        known = np.isin(detections[:, IMAGE], self._image_ids) & np.isin(
            detections[:, CATEGORY], self.category_ids
        )
        rows = detections[known]
        rows[:, IMAGE], rows[:, CATEGORY] = self._places(rows[:, IMAGE], rows[:, CATEGORY])
        result = hotcoco.COCOeval(self._indexed, self._indexed.load_res(rows), "bbox")
        result.params.imgIds = np.searchsorted(self._image_ids, image_ids).tolist()
        return result

    def matches(
        self, detections: Detections, image_ids: Sequence[int], evaluator: Evaluator = "hotcoco"
    ) -> Matches:
        """Which detections on some images match which boxes; only pycocotools is asked for its own answer.

        hotcoco hands its matches over as dictionaries, which takes twenty times as long as all it computes.
        """
        if evaluator == "pycocotools":
            return self._recorded_matches(detections, image_ids)
        chosen, categories = np.unique(np.asarray(image_ids)), np.asarray(self.category_ids)
        truth, crowd = self._rows
        kept = np.isin(truth[:, IMAGE], chosen)
        truth, crowd = truth[kept], crowd[kept]
        known = np.isin(detections[:, IMAGE], chosen) & np.isin(detections[:, CATEGORY], categories)
        detected = detections[known]
        none = np.zeros(len(detected), bool)
        true, ours = (
            Boxes(
                np.searchsorted(chosen, rows[:, IMAGE]),
                np.searchsorted(categories, rows[:, CATEGORY]),
                rows[:, BOX],
                rows[:, SCORE],
                flags,
            )
            for rows, flags in ((truth, crowd), (detected, none))
        )
        return Matches(len(chosen), RECALLS, match(true, ours, len(chosen), len(categories), IOUS))

    def _recorded_matches(self, detections: Detections, image_ids: Sequence[int]) -> Matches:
        result = self.cocoeval(detections, image_ids, "pycocotools")
        result.params.areaRng, result.params.areaRngLbl = [[0, 1e10]], ["all"]
        result.evaluate()
        images = {number: place for place, number in enumerate(sorted(result.params.imgIds))}
        classes = {number: place for place, number in enumerate(sorted(result.params.catIds))}
        by_class: list[list[tuple[int, dict[str, Any]]]] = [[] for _ in classes]
        for record in result.evalImgs:
            if record is not None:
                by_class[classes[record["category_id"]]].append((images[record["image_id"]], record))
        for records in by_class:
            records.sort(key=lambda record: record[0])
        return Matches(len(images), RECALLS, [class_matches(each, len(images)) for each in by_class])

    @cached_property
    def _rows(self) -> tuple[Detections, NDArray[np.bool_]]:
        """The true boxes in the form of detections, with areas for scores, and which are crowds."""
        things = self._coco.dataset["annotations"]
        rows = [(each["image_id"], *each["bbox"], each["area"], each["category_id"]) for each in things]
        return np.array(rows, np.float64).reshape(-1, 7), np.array([each["iscrowd"] for each in things], bool)

    def _places(self, image_ids: Any, category_ids: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids as their places among all: hotcoco takes no negative ones."""
        return np.searchsorted(self._image_ids, image_ids), np.searchsorted(self.category_ids, category_ids)

    def _index(self, hotcoco: Any) -> Any:
        things = self._coco.dataset["annotations"]
        images = (self._coco.imgs[number] for number in self._image_ids)
        image_places, category_places = self._places(
            [thing["image_id"] for thing in things], [thing["category_id"] for thing in things]
        )
        return hotcoco.COCO.from_arrays(
            [
                {"id": place, "width": each["width"], "height": each["height"], "file_name": ""}
                for place, each in enumerate(images)
            ],
            [{"id": place, "name": str(number)} for place, number in enumerate(self.category_ids)],
            image_places,
            category_places,
            np.array([thing["bbox"] for thing in things], np.float64).reshape(-1, 4),
            ids=np.arange(1, len(things) + 1),  # 0 stands for no box
            area=np.array([thing["area"] for thing in things], np.float64),
            iscrowd=np.array([thing["iscrowd"] for thing in things], np.int64),
        )


def _as_coco(truth: COCO, detections: Detections) -> COCO:
    """Detections as pycocotools indexes them; its `loadRes` refuses an empty list."""
    coco = COCO()
    coco.dataset = {
        "images": truth.dataset["images"],
        "categories": truth.dataset["categories"],
        "annotations": [
            {
                "id": number,
                "image_id": int(image),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": score,
                "category_id": int(category),
            }
            for number, (image, *box, score, category) in enumerate(detections.tolist(), 1)
        ],
    }
    coco.createIndex()
    return coco
