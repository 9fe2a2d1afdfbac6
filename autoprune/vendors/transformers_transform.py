"""The image processors of Transformers as a `DetectorTransform`."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from autoprune.errors import ModelError
from autoprune.vendors.transform import DetectorTransform, Size
from autoprune.vendors.transformers_families import Family, quiet

BILINEAR = 2
"""PIL's number for it."""
_KNOWN = (
    "ConditionalDetrImageProcessor",
    "DeformableDetrImageProcessor",
    "DetrImageProcessor",
    "RTDetrImageProcessor",
    "RfDetrImageProcessor",
    "YolosImageProcessor",
)
_WAYS: dict[str, dict[str, Any]] = {
    "YolosImageProcessor": {"step": 16},
    "RfDetrImageProcessor": {"antialias": False, "rounded": False},
}
"""What some processors do differently, as arguments of `ProcessorTransform`."""


class ProcessorTransform(DetectorTransform):
    """Rounds sizes as the vendor's processors do where the ratio of the sides is kept; resizes in 8 bits.

    The kernel for 8 bits rounds between rows and columns too, so that a tenth of the pixels differ by 1/255
    from those of floating-point numbers. Exporters know only the latter.

    Without any of the three sizes an image keeps its own.

    Args:
        step: the sides become multiples of it.
        **settings: see `DetectorTransform`.
    """

    def __init__(self, step: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.step = step

    def _resize(self, image: Tensor) -> Tensor:
        if not self.rounded or torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling():
            return super()._resize(image)
        size = self._size(image.shape[-2], image.shape[-1])
        if size == tuple(image.shape[-2:]):
            return image
        whole = (image * 255).round().clamp(0, 255).to(torch.uint8)
        resized: Tensor = resize(whole, list(size), antialias=self.antialias)
        return resized.to(image.dtype) / 255

    def _size(self, height: int, width: int) -> Size:
        if self.fixed_size is not None:
            return super()._size(height, width)
        if self.min_size is None or self.max_size is None:
            return height, width
        short, long = min(height, width), max(height, width)
        if self._is_resized(short, long, self.min_size, self.max_size):
            return height, width
        exact = float(self.min_size)
        if long / short * exact > self.max_size:
            exact = self.max_size * short / long
        shorter = round(exact)
        longer = long if short == shorter else int(exact * long / short)
        pair = (shorter, longer) if height <= width else (longer, shorter)
        return pair[0] - pair[0] % self.step, pair[1] - pair[1] % self.step

    def _is_resized(self, short: int, long: int, min_size: int, max_size: int) -> bool:
        """Whether sides are those of an image that was resized already, as data is before it is kept.

        Rounding may leave its longer side a step below the limit; to resize it once more would stretch it.
        """
        at_limit = short == min_size - min_size % self.step or long >= max_size - self.step
        whole = short % self.step == long % self.step == 0
        return whole and at_limit and short <= min_size and long <= max_size


def preprocessing_of(given: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """What a ``preprocessor_config.json`` says, completed by the vendor's defaults; plain values for YAML.

    Args:
        given: its content, or nothing.
        family: of the detector.
        where: its file, for messages.

    Raises:
        ModelError: the processor is unknown, or does what `transform_of` can't.
    """
    kind = given.get("image_processor_type") or given.get("feature_extractor_type") or family.processor
    name = str(kind).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in _KNOWN:
        raise ModelError(f"{where}: the image processor {kind} is none of {', '.join(_KNOWN)}")
    left_out = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "format")
    try:
        with quiet():
            made: Any = getattr(transformers, name)(**{k: v for k, v in given.items() if k not in left_out})
        size = {key: _whole(value) for key, value in dict(made.size or {}).items() if value is not None}
        completed = {
            "image_processor_type": name,
            "do_resize": bool(made.do_resize),
            "size": size,
            "resample": int(made.resample),
            "do_rescale": bool(made.do_rescale),
            "rescale_factor": float(made.rescale_factor),
            "do_normalize": bool(made.do_normalize),
            "image_mean": [float(value) for value in made.image_mean],
            "image_std": [float(value) for value in made.image_std],
            "do_pad": bool(made.do_pad),
        }
    except Exception as error:  # the vendor's checks raise errors of many kinds
        problem = " ".join(f"{error}".split())[:200]
        raise ModelError(f"{where} holds no valid settings of {name}: {problem}") from error
    if getattr(made, "pad_size", None) is not None and made.do_pad:
        raise ModelError(
            f"{where}: `pad_size` is not supported; omit it, so that a batch is padded as needed"
        )
    transform_of(completed, where)
    return completed


def _whole(value: Any) -> int:
    """A number of pixels; ``true`` is none."""
    if isinstance(value, bool):
        raise TypeError(f"`size` holds {value}, which is no number of pixels")
    return int(value)


def transform_of(settings: Mapping[str, Any], where: str = "preprocessing") -> ProcessorTransform:
    """The transform of settings that `preprocessing_of` returned.

    Raises:
        ModelError: one is missing, wrong or not supported.
    """
    try:
        factor = float(settings["rescale_factor"]) * 255 if settings["do_rescale"] else 255.0
        mean, std = (
            [float(value) for value in settings[name]] if settings["do_normalize"] else [neutral] * 3
            for name, neutral in (("image_mean", 0.0), ("image_std", 1.0))
        )
        size = settings["size"] if settings["do_resize"] else {}
        sides = {name: int(value) for name, value in size.items()}
        way = _WAYS.get(settings["image_processor_type"], {})
        resample = settings["resample"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{where} is wrong or incomplete ({type(error).__name__}: {error})") from error
    if size and resample != BILINEAR:
        raise ModelError(f"{where}: `resample` is {resample}, and only {BILINEAR} (bilinear) is supported")
    if factor <= 0 or not math.isfinite(factor) or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ModelError(
            f"{where}: rescale_factor and the three numbers of image_std must be above 0, and image_mean "
            "must hold three"
        )
    if any(value < 1 for value in sides.values()):
        raise ModelError(f"{where}: the sides of `size` must be 1 pixel at least, not {sides}")
    made = {"image_mean": [m / factor for m in mean], "image_std": [s / factor for s in std], **way}
    match sides:
        case {"height": height, "width": width, **rest} if not rest:
            return ProcessorTransform(fixed_size=(width, height), **made)
        case {"shortest_edge": shorter, "longest_edge": longer, **rest} if not rest:
            return ProcessorTransform(min_size=shorter, max_size=longer, **made)
        case {} if not settings["do_resize"]:
            return ProcessorTransform(**made)
    held = ", ".join(sides) or "nothing"
    raise ModelError(
        f"{where}: `size` holds {held}; give height and width, or shortest_edge and longest_edge"
    )


def with_size(settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings at the size that a user's ``model_arguments`` give.

    Args:
        settings: of `preprocessing_of`.
        arguments: ``size`` (pixels of both sides, or height and width) or ``min_size`` and ``max_size``.

    Raises:
        ModelError: they are wrong, or both are given.
    """
    if not arguments:
        return dict(settings)
    if "size" in arguments:
        size = arguments["size"]
        height, width = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
        wanted = {"height": height, "width": width}
        if len(arguments) > 1:
            raise ModelError(
                "model_arguments: size stretches images to it; omit it, or min_size and max_size"
            )
    else:
        if "min_size" not in arguments:
            raise ModelError("model_arguments: max_size needs min_size beside it")
        wanted = {"shortest_edge": arguments["min_size"], "longest_edge": arguments.get("max_size")}
        if wanted["longest_edge"] is None:
            old = settings["size"]
            if "shortest_edge" not in old or "longest_edge" not in old:
                raise ModelError("model_arguments: min_size needs max_size beside it, which has no default")
            ratio = old["longest_edge"] / old["shortest_edge"]
            wanted["longest_edge"] = round(wanted["shortest_edge"] * max(ratio, 1))
    for value in wanted.values():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65_536:
            raise ModelError(f"model_arguments: a size must be 1 to 65536 pixels, not {value!r}")
    return {**settings, "do_resize": True, "size": wanted}
