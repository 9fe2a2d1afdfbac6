"""A detector of Transformers in torchvision's convention: labels, losses, detections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert

from autoprune.errors import ModelError
from autoprune.vendors.dense import DenseRule
from autoprune.vendors.detector import PREFIX, VendorDetector
from autoprune.vendors.transform import DetectorTransform, Size


@dataclass(frozen=True)
class Select:
    """How an image processor makes detections of logits.

    Attributes:
        softmax: one detection a query, of its likeliest class besides the last, which means no object; else
            the best pairs of query and class.
        count: pairs, at most; ``None`` for as many as there are queries.
    """

    softmax: bool = False
    count: int | None = None

    def scores(self, logits: Tensor) -> Tensor:
        """Of logits [n, queries, classes]; without the class that means no object."""
        return logits.softmax(-1)[..., :-1] if self.softmax else logits.sigmoid()

    def __call__(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of logits and boxes [n, queries, 4] the best scores, classes and boxes, [n, k]."""
        scores = self.scores(logits)
        if self.softmax:
            scores, classes = scores.max(-1)
            scores, order = scores.topk(scores.shape[1], dim=1)
            return scores, classes.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 4))
        queries, classes_of_each = logits.shape[1:]
        wanted = min(queries if self.count is None else self.count, queries * classes_of_each)
        scores, pairs = scores.flatten(1).topk(wanted, dim=1)
        query = torch.div(pairs, classes_of_each, rounding_mode="floor")
        return scores, pairs % classes_of_each, boxes.gather(1, query[..., None].expand(-1, -1, 4))


@dataclass(frozen=True)
class Grid:
    """What a detector asks of the size of a batch.

    Attributes:
        step: height and width must be multiples of it.
        strides: pixels between the positions that queries are chosen from, by level.
        queries: how many are chosen.
    """

    step: int
    strides: tuple[int, ...]
    queries: int

    def check(self, height: int, width: int) -> None:
        """Refuses a size that the detector can't run at.

        Raises:
            ModelError: says which it can.
        """
        if height % self.step or width % self.step:
            raise ModelError(
                f"an input of {height}x{width} pixels can't be divided by the detector's stride of "
                f"{self.step}; give another --input-size or model_arguments.size"
            )
        positions = sum(-(-height // stride) * -(-width // stride) for stride in self.strides)
        if positions < self.queries:
            raise ModelError(
                f"an input of {height}x{width} pixels has {positions} positions, fewer than the detector's "
                f"{self.queries} queries; give a larger --input-size or model_arguments.size, or lower "
                "`num_queries` of its config"
            )


class TransformersDetector(VendorDetector):
    """A ``...ForObjectDetection`` of Transformers.

    Boxes are relative to each image without its padding, in labels as in predictions.

    Args:
        vendor: the model.
        transform: resizes as its image processor does.
        features: see `VendorDetector`.
        select: makes detections as its image processor does.
        grid: what it asks of the size of its input.
        masked: whether it takes a mask of the padding.
    """

    library = "transformers"

    def __init__(
        self,
        vendor: nn.Module,
        transform: DetectorTransform,
        features: Sequence[str],
        select: Select,
        grid: Grid | None,
        masked: bool = True,
    ) -> None:
        super().__init__(vendor, transform, features)
        self.select, self.grid, self.masked = select, grid, masked

    def raw(self, batch: ImageList) -> Any:
        """``logits`` [n, queries, classes] and ``pred_boxes`` [n, queries, 4] of the vendor's output.

        Without its hidden states: channels of what a model returns can't go.
        """
        output = self._call(batch)
        return {name: output[name] for name in ("logits", "pred_boxes")}

    def losses(self, batch: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The vendor's own loss; some of them draw random numbers for it."""
        labels = [
            {
                "class_labels": target["labels"] - 1,
                "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / _scale(target["boxes"], size),
            }
            for target, size in zip(targets, batch.image_sizes, strict=True)
        ]
        return {"loss": self._call(batch, labels=labels).loss}

    def detections(self, raw: Any, batch: ImageList) -> list[dict[str, Tensor]]:
        """All that the vendor's processor returns for a threshold of 0, the best first."""
        scores, classes, boxes = self.select(raw["logits"], raw["pred_boxes"])
        corners = box_convert(boxes, "cxcywh", "xyxy")
        return [
            {"boxes": corners[n] * _scale(corners, size), "scores": scores[n], "labels": classes[n] + 1}
            for n, size in enumerate(batch.image_sizes)
        ]

    def dense_rule(self, size: Size) -> DenseRule:
        """See `VendorDetector.dense_rule`; a threshold of 0, as in `detections`."""
        if self.transform.fixed_size is None:
            raise ModelError(
                f"this {type(self.vendor).__name__} keeps the ratio of an image's sides and has to know what "
                "is padding, which an input of one size does not tell"
            )
        count = self.select.count
        return DenseRule(0.0, count, count, best_class=self.select.softmax)

    def dense(self, raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
        """See `VendorDetector.dense`."""
        boxes = box_convert(raw["pred_boxes"], "cxcywh", "xyxy")
        height, width = (int(side) for side in batch.tensors.shape[-2:])
        return boxes * _scale(boxes, (height, width)), self.select.scores(raw["logits"])

    def name_classes(self, names: Mapping[int, str]) -> None:
        """Gives the model's config the name of each label."""
        config: Any = self.vendor.config
        config.id2label = {n: names.get(n + 1, f"LABEL_{n}") for n in range(config.num_labels)}
        config.label2id = {name: n for n, name in config.id2label.items()}

    def own_names(self, tensors: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """The tensors of a file by this model's names: the vendor saves some under earlier ones."""
        from autoprune.vendors.transformers_weights import translated_for  # which imports the library

        flat = isinstance(tensors, Mapping) and all(isinstance(each, Tensor) for each in tensors.values())
        if not flat or any(name.startswith(PREFIX) for name in tensors):
            return tensors
        return translated_for(self.vendor, tensors, where)

    def _call(self, batch: ImageList, **more: Any) -> Any:
        height, width = (int(side) for side in batch.tensors.shape[-2:])
        if self.grid is not None:
            self.grid.check(height, width)
        return self.vendor(pixel_values=batch.tensors, **self._mask(batch, (height, width)), **more)

    def _mask(self, batch: ImageList, whole: tuple[int, int]) -> Mapping[str, Tensor]:
        """Where the images lie in the batch, if it has padding and the model takes that."""
        if not self.masked or all(size == whole for size in batch.image_sizes):
            return {}
        mask = torch.zeros((len(batch.image_sizes), *whole), dtype=torch.int64, device=batch.tensors.device)
        for place, (height, width) in zip(mask, batch.image_sizes, strict=True):
            place[:height, :width] = 1
        return {"pixel_mask": mask}


def _scale(like: Tensor, size: tuple[int, int]) -> Tensor:
    """Width, height, width, height of an image, of the type and on the device of ``like``."""
    return like.new_tensor([size[1], size[0], size[1], size[0]])
