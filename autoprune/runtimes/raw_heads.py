"""A detector as a plain network: fixed input, dense outputs, no data-dependent operation."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from autoprune.errors import ModelError
from autoprune.runtimes.decode_raw_heads import Frame
from autoprune.vendors import VendorDetector

Size = tuple[int, int]
Outputs = dict[str, Tensor]

SCORES: dict[type[nn.Module], Callable[[Outputs], Tensor]] = {
    RetinaNet: lambda outputs: outputs["cls_logits"].sigmoid(),
    FCOS: lambda outputs: (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt(),
    SSD: lambda outputs: outputs["cls_logits"].softmax(-1),
}
"""For each kind of torchvision's one-stage detectors, the scores [N, A, K] from the outputs of its head."""


def has_raw_heads(detector: nn.Module) -> bool:
    """Whether `RawHeads` supports the detector."""
    if not isinstance(detector, VendorDetector):
        return isinstance(detector, tuple(SCORES)) and not _is_padded_beyond(detector)
    try:
        detector.dense_rule(detector.transform.only_size or (1, 1))
    except ModelError:
        return False
    return True


def only_input(detector: nn.Module) -> Size | None:
    """Height and width of the one input that a detector's raw heads can have; ``None`` where any will do."""
    transform: Any = detector.transform
    if isinstance(detector, VendorDetector):
        return detector.transform.only_size
    if transform.fixed_size is None:
        return None
    return int(transform.fixed_size[1]), int(transform.fixed_size[0])  # torchvision has (width, height)


def _is_padded_beyond(detector: nn.Module) -> bool:
    """Whether images are padded after they are stretched to the one size, over which anchors are laid out."""
    transform: Any = detector.transform
    return any(side % int(transform.size_divisible) for side in only_input(detector) or ())


class RawHeads(nn.Module):
    """A detector from pixels in [0, 1] to boxes and scores of all anchors, whose modules it shares.

    Args:
        detector: torchvision's RetinaNet, FCOS or SSD, or a `VendorDetector` with dense outputs, on the CPU.
        input_size: height and width; rounded up to the multiple that the detector pads to. The one size of
            SSD, and of vendors' detectors that stretch images, is used instead.

    Attributes:
        frame: the input, and how the outputs are to be read.

    Raises:
        ModelError: the detector is of another kind, or has no dense outputs.
    """

    frame: Frame

    def __init__(self, detector: nn.Module, input_size: Size) -> None:
        super().__init__()
        self.heads: _VendorHeads | _OneStageHeads
        if isinstance(detector, VendorDetector):
            self.heads = _VendorHeads(detector, input_size)
        else:
            self.heads = _OneStageHeads(detector, input_size)
        self.frame = self.heads.frame
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores of all anchors.

        Args:
            image: float32 [N, 3, height, width] in [0, 1].

        Returns:
            ``boxes`` [N, A, 4], x1, y1, x2, y2 in pixels of the input, and ``scores`` [N, A, K].
        """
        outputs: tuple[Tensor, Tensor] = self.heads(image)
        return outputs


class _VendorHeads(nn.Module):
    """The dense outputs of another library's detector; it runs once, to count them."""

    def __init__(self, detector: VendorDetector, input_size: Size) -> None:
        super().__init__()
        self.detector = detector.eval()
        transform = detector.transform
        self.size = transform.padded_size([transform.only_size or input_size])
        height, width = self.size
        try:
            rule = detector.dense_rule(self.size)
        except ModelError as error:
            raise ModelError(
                f"no raw heads: {error}; export it whole with --format onnx, without --raw-heads"
            ) from error
        with torch.no_grad():
            anchors = int(self(torch.zeros(1, 3, height, width))[0].shape[1])
        self.frame = Frame(
            height=height,
            width=width,
            stretch=transform.fixed_size is not None,
            padding=transform.color,  # type: ignore[arg-type]
            levels=rule.levels or (anchors,),
            per_class=False,
            first_label=0,
            score_threshold=rule.score_threshold,
            most_candidates=rule.most_candidates or anchors,
            iou_threshold=rule.iou_threshold,
            most_detections=rule.most_detections or anchors,
            label_of_first=1,
            best_class=rule.best_class,
            enlarged_to=transform.max_size or 0,
            smoothed=transform.antialias,
            centered=transform.placement == "center",
            clip_last=rule.clip_last,
            drop_empty=rule.drop_empty,
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        batch = self.detector.placed(image, [self.size] * int(image.shape[0]))
        return self.detector.dense(self.detector.raw(batch), batch)


class _OneStageHeads(nn.Module):
    """Backbone and head of torchvision's one-stage detectors; the backbone runs once, to find the anchors."""

    mean: Tensor
    std: Tensor
    anchors: Tensor

    def __init__(self, detector: nn.Module, input_size: Size) -> None:
        super().__init__()
        kind = next((kind for kind in SCORES if isinstance(detector, kind)), None)
        if kind is None:
            raise ModelError(
                f"raw heads need a one-stage detector (RetinaNet, FCOS, SSD), this is a "
                f"{type(detector).__name__}; export it whole with --format onnx, without --raw-heads"
            )
        untyped: Any = detector  # torchvision has no types
        self.backbone: nn.Module = untyped.backbone
        self.head: nn.Module = untyped.head
        self._scores, self._coder = SCORES[kind], untyped.box_coder
        transform = untyped.transform
        self.register_buffer("mean", torch.tensor(transform.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(transform.image_std).view(1, 3, 1, 1))
        step = int(transform.size_divisible)
        fixed = only_input(detector)
        if fixed is not None and _is_padded_beyond(detector):
            padded = ", ".join(str(-(-side // step) * step) for side in reversed(fixed))
            raise ModelError(
                f"raw heads can't be made at the fixed size of {fixed[0]}x{fixed[1]} pixels, as the detector "
                f"pads it to multiples of {step}; give a fixed_size such as [{padded}], or export it whole"
            )
        height, width = fixed or tuple(-(-side // step) * step for side in input_size)
        probe = torch.zeros(1, 3, height, width)
        with torch.no_grad():
            features = self._features(probe)
            (anchors,) = untyped.anchor_generator(ImageList(probe, [(height, width)]), features)
        self.register_buffer("anchors", anchors)
        cells = [int(feature.shape[-2] * feature.shape[-1]) for feature in features]
        per_cell = untyped.anchor_generator.num_anchors_per_location()
        self.frame = Frame(
            height=height,
            width=width,
            stretch=transform.fixed_size is not None,
            padding=tuple(float(value) for value in transform.image_mean),  # type: ignore[arg-type]
            levels=tuple(count * each for count, each in zip(cells, per_cell, strict=True)),
            per_class=kind is SSD,
            first_label=1 if kind is SSD else 0,
            score_threshold=float(untyped.score_thresh),
            most_candidates=int(untyped.topk_candidates),
            iou_threshold=float(untyped.nms_thresh),
            most_detections=int(untyped.detections_per_img),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.head(self._features((image - self.mean) / self.std))
        offsets, anchors = outputs["bbox_regression"], self.anchors
        count = offsets.shape[0]
        if isinstance(self._coder, BoxLinearCoder):
            boxes = self._coder.decode(offsets, anchors)
        else:
            flat = self._coder.decode_single(offsets.reshape(-1, 4), anchors.repeat(count, 1))
            boxes = flat.reshape(count, -1, 4)
        return boxes, self._scores(outputs)

    def _features(self, normalized: Tensor) -> list[Tensor]:
        features = self.backbone(normalized)
        return [features] if isinstance(features, Tensor) else list(features.values())


def detect_padded(detector: nn.Module, padded: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """The detections of the detector's own code on an image that is already resized and padded.

    Args:
        detector: one that `RawHeads` supports, in eval mode.
        padded: [1, 3, height, width] in [0, 1], as `Frame.pad` returns it.
        size: height and width of the image without the padding.

    Returns:
        ``boxes`` [n, 4], ``scores`` [n] and ``labels`` [n] in pixels of the image without the padding.
    """
    if isinstance(detector, VendorDetector):
        with torch.inference_mode():
            return detector.detect_placed(padded, size)
    same = copy.copy(detector)
    same._modules = OrderedDict(detector._modules)  # a copy, so that the detector keeps its own transform
    same.transform = _NormalizeOnly(detector.transform, size)
    with torch.inference_mode():
        (detections,) = same([padded[0]])
    return dict(detections)


def resize_and_pad(image: Tensor, frame: Frame) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """An image [3, h, w] as the input [1, 3, H, W] of raw heads, and its height and width in there."""
    old = (int(image.shape[-2]), int(image.shape[-1]))
    size = frame.fitted_size(*old)
    if size != old:
        options: Any = {"mode": "bilinear", "align_corners": False, "antialias": frame.smoothed}
        image = F.interpolate(image[None], size, **options)[0]
    return frame.pad(image.numpy()), size


class _NormalizeOnly(nn.Module):
    """Replaces a detector's transform: normalizes, and neither resizes nor pads."""

    def __init__(self, transform: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self._transform, self._size = [transform], size  # in a list, so that it is no submodule

    def forward(self, images: list[Tensor], targets: None = None) -> tuple[ImageList, None]:
        normalized = self._transform[0].normalize(images[0])[None]
        return ImageList(normalized, [self._size]), None

    def postprocess(self, result: Any, *sizes: Any) -> Any:
        return result
