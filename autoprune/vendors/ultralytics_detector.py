"""A model of Ultralytics as a detector: its own head, selection of boxes and losses, called, not copied."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

from autoprune.errors import ModelError
from autoprune.modules.float_outputs import to_float
from autoprune.vendors.dense import DenseRule
from autoprune.vendors.detector import VendorDetector
from autoprune.vendors.transform import DetectorTransform, Size
from autoprune.vendors.ultralytics_library import (
    DEFAULT_CFG_DICT,
    get_cfg,
    heads,
    non_max_suppression,
    quiet,
    tasks,
    xywh2xyxy,
    xywhr2xyxyxyxy,
)
from autoprune.vendors.ultralytics_tools import follow_widths, save

FILL = 114 / 255
"""Gray around images, as in Ultralytics' `LetterBox`."""
_MOST_CANDIDATES = 30_000
"""Boxes that go into Ultralytics' non-maximum suppression, at most: its default."""
_GRIDS = ("shape", "shapes", "anchors", "strides", "valid_mask")
"""What a prediction layer caches; its class has what they are without."""


@dataclass(frozen=True)
class Selection:
    """How boxes are selected; names and values as in Ultralytics' own settings.

    Attributes:
        conf: lowest score. 0.001 as in its validation; its `predict` shows those above 0.25.
        iou: overlap from which the lower of two boxes goes.
        max_det: boxes of an image.
        nms: whether overlapping boxes are suppressed; false uses the head without, where there is one.
    """

    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 300
    nms: bool = True


class UltralyticsDetector(VendorDetector):
    """A YOLO or RT-DETR of Ultralytics; of segmentation, pose and oriented boxes, the boxes alone.

    In evaluation mode only that of two heads runs which selects the boxes, as in what Ultralytics deploys.

    Args:
        vendor: its model.
        imgsz: pixels of the longer side; of both sides for RT-DETR, which stretches images.
        selection: of boxes.

    Attributes:
        selection: the same.
    """

    library = "ultralytics"

    def __init__(self, vendor: Any, imgsz: int, selection: Selection) -> None:
        head = vendor.model[-1]
        stretched = _is_rtdetr(head)
        transform = DetectorTransform(
            min_size=None if stretched else imgsz,
            max_size=None if stretched else imgsz,
            fixed_size=(imgsz, imgsz) if stretched else None,
            size_divisible=int(max(vendor.stride)),
            fill=FILL,
            placement="center",
            antialias=False,
        )
        super().__init__(vendor, transform, [f"model.{index}" for index in head.f])
        self.selection = selection
        if not stretched and selection.max_det > head.max_det:  # raised as by Ultralytics' predictor
            head.max_det = selection.max_det

    @property
    def head(self) -> Any:
        """The prediction layer."""
        model: Any = self.vendor.model
        return model[-1]

    @property
    def imgsz(self) -> int:
        """Pixels of the longer side, which a policy can change."""
        size = self.transform.max_size if self.transform.fixed_size is None else self.transform.fixed_size[0]
        assert size is not None
        return int(size)

    def raw(self, batch: ImageList) -> Any:
        """What Ultralytics' model returns; in evaluation mode first its decoded boxes, then the rest.

        In training mode without the feature maps, which are no outputs of the detector.
        """
        if self.training:
            return _without_features(self._run(batch.tensors))
        with _one_branch(self.head, self.selection.nms):
            return self._run(batch.tensors)

    def _run(self, images: Tensor) -> Any:
        with _own_grids(self.head):
            return self.vendor(images)

    @quiet()
    def losses(self, batch: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Ultralytics' own losses, weighted by its gains, as a mean over the images.

        Raises:
            ModelError: the task needs more than boxes.
        """
        vendor: Any = self.vendor
        if vendor.task != "detect":
            raise ModelError(
                f"a model of task {vendor.task} can't be trained here, as data with boxes alone gives it no "
                "losses: search with --criterion l2 --no-curves --rungs 0, and train in its own trainer"
            )
        content = _own_batch(batch.tensors, targets)
        if _is_rtdetr(self.head):
            with _own_grids(self.head):
                total, _ = vendor.loss(content)  # decodes with the boxes: noisy ones are queries too
            del vendor.criterion
            return {"loss": total}
        # A criterion of its own each time: it would keep the device, and not survive a copy.
        outputs = to_float(self._run(batch.tensors))
        with torch.autocast(batch.tensors.device.type, enabled=False):  # in bfloat16 boxes move by pixels
            parts, named = vendor.init_criterion()(outputs, content)
        return {name: part / len(batch.tensors) for name, part in zip(named, parts, strict=True)}

    def detections(self, raw: Any, batch: ImageList) -> list[dict[str, Tensor]]:
        """Boxes as `predict` of Ultralytics selects them; oriented ones as the upright boxes around them."""
        height, width = batch.tensors.shape[-2:]
        chosen = self.selection
        if _is_rtdetr(self.head):
            scale = raw[0].new_tensor([width, height, width, height])
            rows = [each[each[:, 4] > chosen.conf][: chosen.max_det] for each in raw[0]]
            return [_named(xywh2xyxy(each[:, :4]) * scale, each) for each in rows]
        vendor: Any = self.vendor
        rotated = vendor.task == "obb"
        rows = non_max_suppression(
            raw[0],
            chosen.conf,
            chosen.iou,
            max_det=chosen.max_det,
            nc=self.head.nc,
            max_time_img=math.inf,  # it would drop the boxes of later images
            rotated=rotated,
            end2end=_is_without_nms(self.head, chosen.nms),
        )
        return [_named(_upright(each) if rotated else each[:, :4], each) for each in rows]

    def dense_rule(self, size: Size) -> DenseRule:
        """See `VendorDetector.dense_rule`."""
        chosen, head = self.selection, self.head
        vendor: Any = self.vendor
        if vendor.task == "obb":
            raise ModelError("oriented boxes suppress each other by more than their upright corners")
        if _is_rtdetr(head):
            return DenseRule(chosen.conf, head.num_queries, chosen.max_det)
        if _is_without_nms(head, chosen.nms):
            anchors = sum((size[0] // stride) * (size[1] // stride) for stride in map(int, vendor.stride))
            return DenseRule(chosen.conf, min(head.max_det, anchors), chosen.max_det)
        return DenseRule(
            chosen.conf, _MOST_CANDIDATES, chosen.max_det, chosen.iou, best_class=True, clip_last=True
        )

    def dense(self, raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
        """See `VendorDetector.dense`."""
        head = self.head
        if _is_rtdetr(head):
            corners = box_convert(raw[1][0].squeeze(0), "cxcywh", "xyxy")
            height, width = (int(side) for side in batch.tensors.shape[-2:])
            return corners * corners.new_tensor([width, height] * 2), raw[1][1].squeeze(0).sigmoid()
        if without := _is_without_nms(head, self.selection.nms):
            with _corners(head), _own_grids(head):
                rows = head._inference(raw[1]["one2one"])  # what its choice of the best ones is made from
        else:
            rows = raw[0][0] if isinstance(raw[0], tuple) else raw[0]  # of segmentation beside its prototypes
        boxes, scores = (part.transpose(1, 2) for part in rows[:, : 4 + head.nc].split([4, head.nc], 1))
        return boxes if without else box_convert(boxes, "cxcywh", "xyxy"), scores

    def write(self, path: Path, names: Mapping[int, str]) -> "UltralyticsDetector":
        """See `VendorDetector.write`."""
        save(self, path, names or None)
        with quiet():
            model, _ = tasks.load_checkpoint(path)  # of this process: it holds what was written above
        model.args = get_cfg(DEFAULT_CFG_DICT, model.args)
        return UltralyticsDetector(model, self.imgsz, self.selection).eval()

    def unwrap(self) -> nn.Module:
        """Ultralytics' own model, for ``YOLO(…).model``; shared, not copied."""
        vendor: Any = self.vendor
        vendor.args.imgsz = self.imgsz
        follow_widths(vendor)
        return self.vendor

    def name_classes(self, names: Mapping[int, str]) -> None:
        """Gives Ultralytics' model the names of its classes, which count from 0, by label."""
        vendor: Any = self.vendor
        vendor.names = {n: names.get(n + 1, str(n)) for n in range(vendor.nc)}


def _without_features(outputs: Any) -> Any:
    if not isinstance(outputs, dict):
        return outputs
    return {name: _without_features(value) for name, value in outputs.items() if name != "feats"}


def _named(boxes: Tensor, rows: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes, "scores": rows[:, 4], "labels": rows[:, 5].long() + 1}


def _upright(rows: Tensor) -> Tensor:
    corners = xywhr2xyxyxyxy(torch.cat([rows[:, :4], rows[:, -1:]], dim=1))  # [k, 4, 2]
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def _own_batch(images: Tensor, targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A batch as Ultralytics' losses take it: centers and sizes as fractions of the batch's own."""
    height, width = images.shape[-2:]
    boxes = torch.cat([target["boxes"] for target in targets]).to(images)
    corners = boxes / boxes.new_tensor([width, height, width, height])
    first, second = corners[:, :2], corners[:, 2:]
    counts = torch.tensor([len(target["boxes"]) for target in targets], device=images.device)
    labels = torch.cat([target["labels"] for target in targets]).to(images)
    return {
        "img": images,
        "batch_idx": torch.repeat_interleave(counts).to(images),
        "cls": (labels - 1)[:, None],
        "bboxes": torch.cat([(first + second) / 2, second - first], dim=1),
    }


def _is_rtdetr(head: Any) -> bool:
    return isinstance(head, heads.RTDETRDecoder)


def _is_without_nms(head: Any, nms: bool) -> bool:
    return not nms and getattr(head, "one2one_cv2", None) is not None


@contextmanager
def _own_grids(head: Any) -> Iterator[None]:
    """Keeps no grids from one pass to the next: those of inference mode or of a trace can't serve others."""
    try:
        for name in _GRIDS:
            vars(head).pop(name, None)
        yield
    finally:
        for name in _GRIDS:
            vars(head).pop(name, None)


@contextmanager
def _corners(head: Any) -> Iterator[None]:
    """The head decodes corners of boxes; under torch.export it does not notice a hidden branch by itself."""
    own = {name: value for name, value in vars(head).items() if name == "xyxy"}
    try:
        head.xyxy = True
        yield
    finally:
        del head.xyxy
        vars(head).update(own)


@contextmanager
def _one_branch(head: Any, nms: bool) -> Iterator[None]:
    """Hides the branch of a head with two that does not select boxes, as fusing drops it."""
    second = [name for name in head._modules if name.startswith("one2one_")]
    hidden = [name.removeprefix("one2one_") for name in second] if _is_without_nms(head, nms) else second
    modules = {name: head._modules[name] for name in hidden if name in head._modules}
    try:
        head._modules.update(dict.fromkeys(modules))
        yield
    finally:
        head._modules.update(modules)
