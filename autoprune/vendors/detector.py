"""A vendor's model as a detector of torchvision's convention."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from autoprune.errors import ConfigError, ModelError
from autoprune.vendors.dense import DenseRule
from autoprune.vendors.transform import DetectorTransform, Size

PREFIX = "vendor."
"""Before the names of the vendor's own tensors and modules."""
Target = Mapping[str, Tensor]
"""``boxes`` [k, 4], x1, y1, x2, y2 in pixels of the image, and ``labels`` [k], int64 from 1."""


class VendorDetector(nn.Module):
    """Images in [0, 1] and boxes in their own pixels go in, losses or detections come out, as in torchvision.

    A vendor's module derives from it and gives `raw`, `losses` and `detections`; for export as raw heads also
    `dense_rule` and `dense`.

    Args:
        vendor: the vendor's own module; its names of tensors and modules stand behind `PREFIX` here.
        transform: resizes and pads as the vendor's predictor does.
        features: names of the vendor's modules whose 4-D outputs [n, c, h, w] are the feature maps: what the
            prediction layers or the decoder reads. Empty where there are none.

    Attributes:
        features: those names, behind `PREFIX`.
        library: name of the library, as in ``LIBRARY:SOURCE``.
        averages_first: whether the library loads a checkpoint's average over the training's steps (EMA), if
            it holds one, before the weights of the last step.
    """

    library: ClassVar[str] = ""
    averages_first: ClassVar[bool] = False

    def __init__(self, vendor: nn.Module, transform: DetectorTransform, features: Sequence[str] = ()) -> None:
        super().__init__()
        self.vendor = vendor
        self.transform = transform
        self.features = tuple(PREFIX + name for name in features)

    def forward(self, images: list[Tensor], targets: Sequence[Target] | None = None) -> Any:
        """Losses in training mode, else detections.

        Args:
            images: of each, float32 [3, h, w] in [0, 1], RGB.
            targets: of each; needed for losses.

        Returns:
            In training mode with targets a dict of scalars, whose sum is the vendor's own loss of an image, a
            mean over the batch; without targets what `raw` returns. In evaluation mode for each image a dict
            of ``boxes`` [k, 4] in its own pixels, ``scores`` [k] and ``labels`` [k] from 1, the best first.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, placed = self.transform(images, None if targets is None else list(targets))
        if self.training:
            return self.raw(batch) if placed is None else self.losses(batch, placed)
        selected = self.detections(self.raw(batch), batch)
        return self.transform.postprocess(selected, batch.image_sizes, sizes)

    def raw(self, batch: ImageList) -> Any:
        """The vendor's outputs for a batch as `transform` returns it, before they become detections."""
        raise NotImplementedError

    def losses(self, batch: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The vendor's losses; ``boxes`` of the targets are in pixels of the batch."""
        raise NotImplementedError

    def detections(self, raw: Any, batch: ImageList) -> list[dict[str, Tensor]]:
        """``boxes`` in pixels of the batch, ``scores`` and ``labels`` by image, selected as by the vendor."""
        raise NotImplementedError

    def dense_rule(self, size: Size) -> DenseRule:
        """How detections are selected from what `dense` returns for inputs of a height and width.

        Raises:
            ModelError: it has no such outputs, or an input of one size does not do for it; says why.
        """
        raise ModelError(f"{type(self).__name__} gives no dense boxes and scores")

    def dense(self, raw: Any, batch: ImageList) -> tuple[Tensor, Tensor]:
        """All boxes [n, A, 4], x1, y1, x2, y2 in pixels of the batch, and their scores [n, A, K] by class.

        Its operations depend on no data, so that every exporter can express them.
        """
        raise NotImplementedError

    def placed(self, pixels: Tensor, sizes: Sequence[Size]) -> ImageList:
        """The batch of images that are resized and padded already.

        Args:
            pixels: [n, 3, height, width] in [0, 1].
            sizes: height and width of each image without its padding.
        """
        mean, std = self.transform.statistics(pixels.device)
        return ImageList((pixels - mean) / std, list(sizes))

    def detect_placed(self, pixels: Tensor, size: Size) -> dict[str, Tensor]:
        """The detections in an image that is resized and padded already.

        Args:
            pixels: [1, 3, height, width] in [0, 1].
            size: height and width of the image without its padding.

        Returns:
            As of `forward`, with boxes in pixels of the image without its padding, and within it.
        """
        batch = self.placed(pixels, [size])
        (selected,) = self.detections(self.raw(batch), batch)
        height, width = size
        top, left = self.transform.offset(size, (int(pixels.shape[-2]), int(pixels.shape[-1])))
        boxes = selected["boxes"] - selected["boxes"].new_tensor([left, top, left, top])
        limits = boxes.new_tensor([width, height, width, height])
        return {**selected, "boxes": boxes.clamp(min=0).minimum(limits)}

    def own_names(self, tensors: Any, where: str) -> Any:
        """What a file holds that the vendor's trainer saved, by the names of the vendor's module here.

        Args:
            tensors: see `checkpoints.read.read_checkpoint`.
            where: the file, for messages.

        Raises:
            ModelError: they are not those of this detector.
        """
        return tensors

    def name_classes(self, names: Mapping[int, str]) -> None:
        """Gives the vendor's module the name of each label, where it carries names."""

    def write(self, path: Path, names: Mapping[int, str]) -> "VendorDetector":
        """Writes the vendor's own file of the detector.

        Args:
            path: the file.
            names: the name of each label; empty to keep those that it has.

        Returns:
            The detector that the vendor reads from the file.

        Raises:
            ConfigError: the vendor has no file that holds a pruned detector.
        """
        raise ConfigError(f"{type(self).__name__} has no file of its own format; give --format onnx")

    def unwrap(self) -> nn.Module:
        """The vendor's own module, for its trainer and its exporter; shared, not copied."""
        return self.vendor
