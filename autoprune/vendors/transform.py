"""How vendors bring images to the size of their networks, in the form of torchvision's transform."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from autoprune.vendors.opencv_resize import resize_as_opencv

Size = tuple[int, int]


class DetectorTransform(nn.Module):
    """Resizes, normalizes and pads images, and brings boxes there and back.

    The attributes are torchvision's (`GeneralizedRCNNTransform`), so that whatever reads or sets the input
    size of its detectors does so here too.

    Args:
        min_size: pixels of the shorter side, where the ratio of the sides is kept; the longer one does not
            pass ``max_size``. Equal values scale the longer side to them.
        max_size: see ``min_size``.
        fixed_size: (width, height) that every image is stretched to, instead of the two above.
        size_divisible: a batch is padded to a multiple of it.
        image_mean: by channel, subtracted from images in [0, 1].
        image_std: by channel, what is divided by then.
        fill: value of the padding, in [0, 1] before or after normalization, see ``fill_normalized``.
        fill_normalized: whether ``fill`` is a value behind the normalization.
        placement: where an image lies in a larger batch.
        antialias: whether an image is smoothed where it becomes smaller: PIL and torchvision do, OpenCV not.
        rounded: whether pixels are rounded to 1/255 after resizing, as where images are resized in 8 bits;
            without ``antialias`` as OpenCV rounds them.
    """

    def __init__(
        self,
        min_size: int | None = None,
        max_size: int | None = None,
        fixed_size: Size | None = None,
        size_divisible: int = 1,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
        fill: float = 0.0,
        fill_normalized: bool = True,
        placement: Literal["corner", "center"] = "corner",
        antialias: bool = True,
        rounded: bool = True,
    ) -> None:
        super().__init__()
        self.min_size = min_size
        self.max_size = max_size
        self.fixed_size = fixed_size
        self.size_divisible = size_divisible
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.fill, self.fill_normalized = fill, fill_normalized
        self.placement, self.antialias, self.rounded = placement, antialias, rounded

    def resized_size(self, size: Size) -> Size:
        """Height and width that an image of a height and width gets, without padding."""
        return self._size(*size)

    def resize_pixels(self, image: Tensor) -> Tensor:
        """An image of 8 bits, uint8 [3, h, w], at the size that it gets."""
        return (self._resize(image.float() / 255) * 255).round().clamp(0, 255).to(torch.uint8)

    @property
    def only_size(self) -> Size | None:
        """Height and width of every batch, whatever its images; ``None`` where that depends on them."""
        return None if self.fixed_size is None else self.padded_size([self.resized_size((1, 1))])

    @property
    def color(self) -> tuple[float, ...]:
        """Of the padding, RGB in [0, 1]."""
        if not self.fill_normalized:
            return (self.fill,) * len(self.image_mean)
        return tuple(self.fill * s + m for m, s in zip(self.image_mean, self.image_std, strict=True))

    def statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by channel, each [3, 1, 1]."""
        both = (self.image_mean, self.image_std)
        mean, std = (torch.tensor(each, device=device)[:, None, None] for each in both)
        return mean, std

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """A batch of images, and their boxes in its pixels.

        Args:
            images: of each, [3, h, w] in [0, 1].
            targets: of each, ``boxes`` [k, 4] in pixels of the image, and others, which stay as they are.

        Returns:
            The batch [n, 3, height, width] with the size of each image in there, without its padding; and the
            targets, where some were given.
        """
        mean, std = self.statistics(images[0].device)
        resized = [self._resize(image) for image in images]
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in resized]
        height, width = self.padded_size(sizes)
        padded = []  # and not written into a batch, which exporters lose
        for image, size in zip(resized, sizes, strict=True):
            top, left = self.offset(size, (height, width))
            sides = (left, width - size[1] - left, top, height - size[0] - top)
            if self.fill_normalized:
                padded.append(F.pad((image - mean) / std, sides, value=self.fill))
            else:
                padded.append((F.pad(image, sides, value=self.fill) - mean) / std)
        batch = torch.stack(padded)
        placed = None
        if targets is not None:
            placed = [
                {**target, "boxes": self._placed(target["boxes"], image.shape[-2:], size, (height, width))}
                for target, image, size in zip(targets, images, sizes, strict=True)
            ]
        return ImageList(batch, sizes), placed

    def postprocess(
        self, result: Sequence[dict[str, Tensor]], image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[dict[str, Tensor]]:
        """The same detections with ``boxes`` in pixels of the original images, within these.

        Args:
            result: of each image, ``boxes`` [k, 4] in pixels of the batch, and others.
            image_sizes: height and width of each image in the batch, as `forward` returned them.
            original_sizes: height and width of each image itself.
        """
        batch = self.padded_size(image_sizes)
        results = []
        for detections, size, original in zip(result, image_sizes, original_sizes, strict=True):
            top, left = self.offset(size, batch)
            boxes = detections["boxes"] - detections["boxes"].new_tensor([left, top, left, top])
            boxes = boxes / boxes.new_tensor(self._scale(original, size))
            height, width = original
            limits = boxes.new_tensor([width, height, width, height])
            results.append({**detections, "boxes": boxes.clamp(min=0).minimum(limits)})
        return results

    def _resize(self, image: Tensor) -> Tensor:
        height, width = map(int, image.shape[-2:])  # an exporter that traces has tensors there
        size = self._size(height, width)
        if size == (height, width):
            return image
        if self.rounded and not self.antialias:
            return resize_as_opencv(image, size)
        resized: Tensor = F.interpolate(
            image[None], size, mode="bilinear", align_corners=False, antialias=self.antialias
        )[0]
        return (resized * 255).round().clamp(0, 255) / 255 if self.rounded else resized

    def _size(self, height: int, width: int) -> Size:
        """The height and width that an image gets."""
        if self.fixed_size is not None:
            return self.fixed_size[1], self.fixed_size[0]
        assert self.min_size is not None
        assert self.max_size is not None
        ratio = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(1, round(height * ratio)), max(1, round(width * ratio))

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """The height and width of a batch of images of these sizes."""
        step = self.size_divisible
        height, width = (-(-max(size[axis] for size in sizes) // step) * step for axis in (0, 1))
        return height, width

    def offset(self, size: Size, batch: Size) -> Size:
        """Pixels above and left of an image in its batch."""
        if self.placement == "corner":
            return 0, 0
        top, left = ((whole - own) / 2 for whole, own in zip(batch, size, strict=True))
        # of an odd number of pixels the smaller half, as in Ultralytics' `LetterBox`
        return round(top - 0.1), round(left - 0.1)

    def _placed(self, boxes: Tensor, original: Sequence[int], size: Size, batch: Size) -> Tensor:
        top, left = self.offset(size, batch)
        scale = boxes.new_tensor(self._scale((original[0], original[1]), size))
        return boxes * scale + boxes.new_tensor([left, top, left, top])

    def _scale(self, original: Size, size: Size) -> list[float]:
        """By what x1, y1, x2 and y2 are multiplied where an image of a size becomes ``size``."""
        vertical, horizontal = size[0] / original[0], size[1] / original[1]
        return [horizontal, vertical, horizontal, vertical]
