"""LibreYOLO's networks in torchvision's convention: how they see images, their losses, their selection."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from libreyolo.postprocess.yolox import decode_outputs
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_convert

from autoprune.modules.float_outputs import to_float
from autoprune.vendors.dense import DenseRule
from autoprune.vendors.detector import VendorDetector
from autoprune.vendors.transform import DetectorTransform, Size

STRIDE = 32
"""Of the coarsest feature maps: what the sides of a batch are multiples of."""
MOST_CANDIDATES = 30_000
"""Boxes of an image (of RTMDet: of one of its levels) that go into the non-maximum suppression, at most."""
STRIDES = (8, 16, 32)
"""Pixels between the cells of each level, of the kinds with non-maximum suppression."""
Candidates = tuple[Tensor, Tensor, Tensor]
"""``boxes`` [n, 4] in pixels of the batch, ``scores`` [n] and class indices [n] of one image."""


class LetterboxedImages(ImageList):
    """A batch of `Letterbox`.

    Attributes:
        areas: x1, y1, x2 and y2 of each image in the batch, before its sides became whole numbers.
    """

    def __init__(self, batch: ImageList, areas: list[list[float]]) -> None:
        super().__init__(batch.tensors, batch.image_sizes)
        self.areas = areas


class Letterbox(DetectorTransform):
    """The longer side becomes ``max_size``; the image lies in a gray square.

    One factor serves both axes, although the sides of the resized image are whole: so LibreYOLO does.
    """

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """As of `DetectorTransform`; the batch is of `LetterboxedImages`."""
        batch, placed = super().forward(images, targets)
        areas = []
        for image, size in zip(images, batch.image_sizes, strict=True):
            top, left = self.offset(size, self.padded_size([size]))
            height, width = (side * self._ratio(image.shape[-2:]) for side in image.shape[-2:])
            areas.append([left, top, left + width, top + height])
        return LetterboxedImages(batch, areas), placed

    @property
    def only_size(self) -> Size:
        """As of `padded_size`."""
        return self.padded_size([])

    def _size(self, height: int, width: int) -> Size:
        ratio = self._ratio((height, width))
        return max(1, int(height * ratio)), max(1, int(width * ratio))

    def _scale(self, original: Size, size: Size) -> list[float]:
        return [self._ratio(original)] * 4

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """The square, whatever the images."""
        assert self.max_size is not None
        side = -(-self.max_size // STRIDE) * STRIDE
        return side, side

    def _ratio(self, size: Sequence[int]) -> float:
        """Factor of both axes; 1 of an image resized before, which rounding left a pixel short."""
        assert self.max_size is not None
        longest = max(size)
        return 1.0 if longest == self.max_size - 1 else self.max_size / longest


class LibreDetector(VendorDetector):
    """A network of LibreYOLO.

    Args:
        vendor: the network.
        transform: `Letterbox` for those with non-maximum suppression.
        features: see `VendorDetector`.
        family: LibreYOLO's name of the kind, one of `DENSE`.
        num_classes: without a background.
        trainer: LibreYOLO's class that trains it: its loss is the loss.
        min_score: of detections.
        nms_thresh: overlap above which the weaker of two detections of a class goes.
        detections_per_img: the best ones are kept.
    """

    averages_first = True

    def __init__(
        self,
        vendor: nn.Module,
        transform: DetectorTransform,
        features: Sequence[str],
        family: str,
        num_classes: int,
        trainer: type,
        min_score: float,
        nms_thresh: float,
        detections_per_img: int,
    ) -> None:
        super().__init__(vendor, transform, features)
        self.family, self.num_classes, self.trainer = family, num_classes, trainer
        self.min_score, self.nms_thresh = min_score, nms_thresh
        self.detections_per_img = detections_per_img

    @property
    def imgsz(self) -> int:
        """Pixels of the square that the network takes, for LibreYOLO's calls; a policy can change it."""
        size = self.transform.only_size
        assert size is not None
        return max(size)

    def raw(self, batch: ImageList) -> Any:
        """What the network gives for images in its own order of colors."""
        outputs = self.vendor(self._images(batch))
        _forget(self.vendor)
        return outputs

    def losses(self, batch: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What LibreYOLO's trainer adds up, by its names."""
        images = self._images(batch)
        trainer: Any = object.__new__(self.trainer)  # its constructor would set up a whole training
        trainer.model, trainer.device = self.vendor, images.device
        trainer.config = SimpleNamespace(num_classes=self.num_classes)
        if hasattr(trainer, "build_criterion"):
            trainer.criterion = trainer._loss_fn = trainer.build_criterion()
        values = trainer.on_forward(images, _rows(targets, images, self.family in CORNERS))
        _forget(self.vendor)
        return {
            name: value
            for name, value in values.items()
            if "loss" in name and name != "total_loss" and isinstance(value, Tensor)
        }

    def detections(self, raw: Any, batch: ImageList) -> list[dict[str, Tensor]]:
        """The best of each image, without overlapping ones of the same class where the kind has them."""
        height, width = (int(side) for side in batch.tensors.shape[-2:])
        rule = self.dense_rule((height, width))
        results = []
        for index, (all_boxes, all_scores) in enumerate(zip(*self.dense(to_float(raw), batch), strict=True)):
            boxes, scores, classes = _candidates(all_boxes, all_scores, rule)
            if isinstance(batch, LetterboxedImages):
                boxes, scores, classes = self._suppressed(boxes, scores, classes, batch.areas[index])
            best = scores.argsort(descending=True, stable=True)[: self.detections_per_img]
            results.append({"boxes": boxes[best], "scores": scores[best], "labels": classes[best] + 1})
        return results

    def dense_rule(self, size: Size) -> DenseRule:
        """See `VendorDetector.dense_rule`."""
        if not isinstance(self.transform, Letterbox):
            return DenseRule(self.min_score, self.detections_per_img, self.detections_per_img)
        rule = DenseRule(
            self.min_score, MOST_CANDIDATES, self.detections_per_img, self.nms_thresh, drop_empty=True
        )
        if self.family == "yolox":
            return replace(rule, most_candidates=None, best_class=True)
        cells = tuple((size[0] // stride) * (size[1] // stride) for stride in STRIDES)
        return replace(rule, levels=cells) if self.family == "rtmdet" else rule

    def dense(self, raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
        """See `VendorDetector.dense`."""
        return DENSE[self.family](raw, batch)

    def placed(self, pixels: Tensor, sizes: Sequence[Size]) -> ImageList:
        """See `VendorDetector.placed`."""
        batch = super().placed(pixels, sizes)
        if not isinstance(self.transform, Letterbox):
            return batch
        whole, areas = self.transform.only_size, []
        for height, width in sizes:
            top, left = self.transform.offset((height, width), whole)
            areas.append([float(side) for side in (left, top, left + width, top + height)])
        return LetterboxedImages(batch, areas)

    def _suppressed(self, boxes: Tensor, scores: Tensor, classes: Tensor, area: list[float]) -> Candidates:
        """Cut to the area of the image, and without those that a better one of their class overlaps."""
        corner, opposite = (boxes.new_tensor(point).repeat(2) for point in (area[:2], area[2:]))
        boxes = boxes.maximum(corner).minimum(opposite)
        kept = ((boxes[:, 2:] > boxes[:, :2]).all(1) & scores.isfinite()).nonzero()[:, 0]
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
        kept = batched_nms(boxes, scores, classes, self.nms_thresh)
        return boxes[kept], scores[kept], classes[kept]

    def _images(self, batch: ImageList) -> Tensor:
        _forget(self.vendor)
        tensors: Tensor = batch.tensors
        return tensors.flip(1) if self.family in BLUE_FIRST else tensors


BLUE_FIRST = ("yolox", "rtmdet")
"""Kinds that read blue, green, red."""
CORNERS = ("yolo9", "rtdetr")
"""Kinds whose trainer takes corners of boxes as fractions of the image, not centers and sizes in pixels."""


def _yolox(raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
    """Objectness times probability."""
    decoded = decode_outputs(raw)
    return box_convert(decoded[..., :4], "cxcywh", "xyxy"), decoded[..., 4:5] * decoded[..., 5:]


def _yolo9(raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
    predictions = raw["predictions"].transpose(1, 2)
    return predictions[..., :4], predictions[..., 4:]


def _rtmdet(raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
    """Boxes are distances from the corner of the cell."""
    boxes, scores = [], []
    for stride, logits, distances in zip(STRIDES, *raw, strict=True):
        height, width = (int(side) * stride for side in logits.shape[-2:])
        down, right = (torch.arange(0, n, stride, device=logits.device) for n in (height, width))
        points = torch.stack(torch.meshgrid(right, down, indexing="xy"), -1).reshape(-1, 2)
        sides = distances.flatten(2).transpose(1, 2)
        corners = torch.cat((points - sides[..., :2], points + sides[..., 2:]), -1)
        boxes.append(corners.clamp(min=0).minimum(corners.new_tensor([width, height] * 2)))
        scores.append(logits.flatten(2).transpose(1, 2).sigmoid())
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def _queries(raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
    """Boxes are fractions of the image."""
    boxes = box_convert(raw["pred_boxes"], "cxcywh", "xyxy")
    height, width = (int(side) for side in batch.tensors.shape[-2:])
    return boxes * boxes.new_tensor([width, height] * 2), raw["pred_logits"].sigmoid()


DENSE: dict[str, Callable[[Any, ImageList], tuple[Tensor, Tensor]]] = {
    "yolox": _yolox,
    "yolo9": _yolo9,
    "rtmdet": _rtmdet,
    "rtdetr": _queries,
    "dfine": _queries,
    "deim": _queries,
}
"""For each kind the boxes and scores of its outputs, see `VendorDetector.dense`."""


def _candidates(boxes: Tensor, scores: Tensor, rule: DenseRule) -> Candidates:
    """The best pairs of a box and a class of each level, from boxes [A, 4] and scores [A, K]."""
    levels, start, chosen = list(rule.levels or [len(boxes)]), 0, []
    for values in torch.split(scores, levels):
        if rule.best_class:
            best, classes = values.max(1)
            cells = (best > rule.score_threshold).nonzero()[:, 0]
            best, classes = best[cells], classes[cells]
        else:
            cells, classes = (values > rule.score_threshold).nonzero(as_tuple=True)
            best = values[cells, classes]
        if rule.most_candidates is not None and len(best) > rule.most_candidates:
            order = best.argsort(descending=True)[: rule.most_candidates]
            best, cells, classes = best[order], cells[order], classes[order]
        chosen.append((boxes[start + cells], best, classes))
        start += len(values)
    first, second, third = (torch.cat(parts) for parts in zip(*chosen, strict=True))
    return first, second, third


def _rows(targets: Sequence[Mapping[str, Tensor]], images: Tensor, corners: bool) -> Tensor:
    """Class and box of each object, [n, most objects of an image, 5], filled up with zeros.

    Boxes are corners as fractions of the batch, or else centers and sizes in its pixels.
    """
    height, width = images.shape[-2:]
    rows = images.new_zeros((len(targets), max([1, *(len(target["boxes"]) for target in targets)]), 5))
    for place, target in zip(rows, targets, strict=True):
        boxes = target["boxes"].to(images)
        if corners:
            boxes = boxes / boxes.new_tensor([width, height, width, height])
        else:
            boxes = box_convert(boxes, "xyxy", "cxcywh")
        place[: len(boxes), 0] = target["labels"] - 1
        place[: len(boxes), 1:] = boxes
    return rows


_NOTHING = torch.zeros(1)
"""Always the same, as torch.export refuses modules that hold another tensor after a call than before it."""


def _forget(vendor: Any) -> None:
    """Drops what heads keep between calls: it may be of another device, of inference mode, or of a trace."""
    head: Any = getattr(vendor, "head", None)
    if hasattr(head, "grids"):
        head.grids = [_NOTHING] * len(head.grids)
    if hasattr(head, "_loss_fn"):
        head._loss_fn, head.shape = None, None
        head.anchors = head.strides = _NOTHING
