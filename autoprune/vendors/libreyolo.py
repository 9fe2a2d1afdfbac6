"""LibreYOLO's detectors (MIT): from its checkpoints, or fresh by a name such as ``yolox-s``."""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.checkpoints.read import read_checkpoint
from autoprune.errors import ModelError
from autoprune.progress import say
from autoprune.vendors.libreyolo_detector import STRIDE, Letterbox, LibreDetector
from autoprune.vendors.libreyolo_files import FAMILIES, TOWERS, converted, described_in, listed, whole
from autoprune.vendors.table import Description
from autoprune.vendors.transform import DetectorTransform

COCO_CLASSES = 80
OWN = ("imgsz", "score_thresh", "nms_thresh", "detections_per_img")
"""Arguments of a user; those that a description adds are in `_checked`."""


def describe(source: str, arguments: Mapping[str, Any]) -> Description:
    """Reads a checkpoint's own description, or takes the name of a kind and a size.

    Args:
        source: a checkpoint of LibreYOLO, or one that LibreYOLO converts; or ``FAMILY-SIZE``.
        arguments: ``imgsz``, pixels of the square that images are brought to, by default the checkpoint's or
            LibreYOLO's own; ``score_thresh``, ``nms_thresh`` and ``detections_per_img``.

    Raises:
        ModelError: there is no such file and no such name, or the file holds another kind or task.
    """
    if {"family", "size"} <= arguments.keys():  # an earlier description, which needs no source
        if (known := _known_as(source)) is not None:
            _refuse_other(known, arguments, source)
        return Description(_checked(arguments), COCO_CLASSES + 1)
    path = Path(source).expanduser()
    if path.is_file():
        content = read_checkpoint(path, device="meta")
        described, classes, names = described_in(content, path)
        _refuse_other((described["family"], described["size"]), arguments, source)
        _say_useless(described["family"], arguments)
        return Description(_checked({**described, **arguments}), classes + 1, names)
    family, size = _named(source)
    _refuse_other((family, size), arguments, source)
    _say_useless(family, arguments)
    return Description(_checked({"family": family, "size": size, **arguments}), COCO_CLASSES + 1)


def _say_useless(family: str, arguments: Mapping[str, Any]) -> None:
    """Says which setting does nothing. It is not refused: runs of earlier versions may have it."""
    if family in ("rtdetr", "dfine", "deim") and "nms_thresh" in arguments:
        say(f"model_arguments: nms_thresh does nothing, as {family} suppresses no boxes; omit it")


def _refuse_other(named: tuple[str, str], arguments: Mapping[str, Any], source: str) -> None:
    """Refuses a kind or a size among the arguments that is not the one that the model's name says.

    Raises:
        ModelError: says both.
    """
    for name, own in zip(("family", "size"), named, strict=True):
        if (other := arguments.get(name, own)) != own:
            raise ModelError(
                f"model_arguments: {name} is {other!r}, and the model libreyolo:{source} has {own}; omit "
                f"{name}, or give --model libreyolo:FAMILY-SIZE"
            )


def read_weights(path: Path) -> Any:
    """The tensors of a checkpoint by LibreYOLO's names, also where another project's names are in the file.

    Raises:
        ModelError: it can't be read without running code of it.
    """
    return converted(read_checkpoint(path))


def build(arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """A detector with fresh weights; all its layers can be trained, also those that LibreYOLO freezes.

    Raises:
        ModelError: an argument is wrong.
    """
    given = _checked(arguments)
    family, size, side = given["family"], given["size"], given["imgsz"]
    library = FAMILIES[family]
    wrapper = library.__new__(library)  # its constructor would choose a device and look for weights
    wrapper.size, wrapper.nb_classes, wrapper.task = size, num_classes - 1, "detect"
    wrapper.reg_max, wrapper.input_size, wrapper._initializing_from_scratch = 16, side, True
    vendor = wrapper.model = wrapper._init_model()
    if family == "yolo9":
        wrapper._align_class_towers_for_transfer({TOWERS: torch.empty(given["class_width"], 1)})
    for part in (getattr(vendor, "encoder", None), getattr(vendor, "decoder", None)):
        if part is not None:  # tables for one input size, which are computed for any other
            part.eval_spatial_size = None
            part._buffers.pop("anchors", None)
            part._buffers.pop("valid_mask", None)
    _refuse_few_cells(family, vendor, side)
    return LibreDetector(
        vendor,
        _transform(family, side, given.get("letterbox_pad", "topleft")),
        _features(family, vendor),
        family,
        num_classes - 1,
        _trainer(family),
        float(given.get("score_thresh", 0.001)),
        float(given.get("nms_thresh", 0.6)),
        int(given.get("detections_per_img", 300)),
    )


def _transform(family: str, side: int, pad: str) -> DetectorTransform:
    """What the `preprocess_numpy` of each kind does; means in the order of `DetectorTransform`, red first."""
    if family in ("rtdetr", "dfine", "deim"):
        return DetectorTransform(fixed_size=(side, side), size_divisible=STRIDE, antialias=family != "rtdetr")
    mean, std = [0.0] * 3, [1 / 255 if family == "yolox" else 1.0] * 3
    if family == "rtmdet":
        mean, std = [n / 255 for n in (123.675, 116.28, 103.53)], [n / 255 for n in (58.395, 57.12, 57.375)]
    return Letterbox(
        side,
        side,
        size_divisible=STRIDE,
        image_mean=mean,
        image_std=std,
        fill=114 / 255,
        fill_normalized=False,
        placement="center" if pad == "center" else "corner",
        antialias=family != "yolo9",
    )


def _features(family: str, vendor: Any) -> list[str]:
    """Names of what the head or the decoder reads."""
    if family == "yolox":
        return ["backbone.C3_p3", "backbone.C3_n3", "backbone.C3_n4"]
    if family == "yolo9":
        return ["neck.elan_up2", "neck.elan_down1", "neck.elan_down2"]
    if family == "rtmdet":
        return [f"neck.out_convs.{level}" for level in range(3)]
    encoder = vendor.encoder
    return [
        f"encoder.fpn_blocks.{len(encoder.fpn_blocks) - 1}",
        *(f"encoder.pan_blocks.{level}" for level in range(len(encoder.pan_blocks))),
    ]


def _refuse_few_cells(family: str, vendor: Any, side: int) -> None:
    """Refuses an input size at which there are fewer cells than queries, of which each needs one.

    Raises:
        ModelError: there are; says the smallest size with enough.
    """
    queries = getattr(getattr(vendor, "decoder", None), "num_queries", 0)
    strides = vendor.decoder.feat_strides if queries else []
    enough = STRIDE
    while sum((enough // stride) ** 2 for stride in strides) < queries:
        enough += STRIDE
    if side < enough:
        raise ModelError(
            f"model_arguments: imgsz is {side}; the {queries} queries of {family} need at least {enough}"
        )


def _trainer(family: str) -> type:
    """The class whose `on_forward` is the loss. Trainers are imported late: they bring data loaders along."""
    name = FAMILIES[family].__name__.removeprefix("Libre")
    trainer: type = getattr(importlib.import_module(f"libreyolo.models.{family}.trainer"), f"{name}Trainer")
    return trainer


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Complete arguments: with the input size and, for YOLO9, the width of the class towers.

    Raises:
        ModelError: one is unknown or has a value that can't be.
    """
    given = dict(arguments)
    family, size = given["family"], given["size"]
    if family not in FAMILIES:
        raise ModelError(
            f"libreyolo: the kind {family!r} is not supported; it must be one of {listed(FAMILIES)}"
        )
    sizes = FAMILIES[family].INPUT_SIZES
    if size not in sizes:
        raise ModelError(f"libreyolo: {family} has no size {size!r}; it has {listed(sizes)}")
    own = {"family", "size", *OWN} | ({"class_width", "letterbox_pad"} if family == "yolo9" else set())
    if unknown := sorted(given.keys() - own):
        raise ModelError(f"model_arguments: libreyolo has no `{unknown[0]}`; valid: {', '.join(OWN)}")
    if family == "yolo9":  # LibreYOLO's own rule for COCO's classes, so that COCO's weights fit
        given.setdefault("class_width", {"t": 80, "s": 80, "m": 240, "c": 256}[size])
        if given.setdefault("letterbox_pad", "topleft") not in ("topleft", "center"):
            raise ModelError("model_arguments: letterbox_pad must be topleft or center")
    side = given.setdefault("imgsz", int(sizes[size]))
    if not whole(side) or side % STRIDE or not STRIDE <= side <= 2**16:
        raise ModelError(
            f"model_arguments: imgsz is {side!r}; {family} needs a multiple of {STRIDE} such as {sizes[size]}"
        )
    for name, most in (("class_width", 4096), ("detections_per_img", 2**16)):
        if name in given and not (whole(given[name]) and 0 < given[name] <= most):
            raise ModelError(f"model_arguments: {name} is {given[name]!r}; give a number from 1 to {most}")
    for name in ("score_thresh", "nms_thresh"):
        value = given.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ModelError(f"model_arguments: {name} is {value!r}; give a number from 0 to 1")
    return given


def _known() -> list[str]:
    return [f"{family}-{size}" for family, library in FAMILIES.items() for size in library.INPUT_SIZES]


def _known_as(name: str) -> tuple[str, str] | None:
    """The kind and the size of ``yolox-s``, however it is spelled; ``None`` for another name."""
    plain = name.lower().removeprefix("libre").replace("-", "").replace("_", "")
    known = (each.split("-", 1) for each in _known())
    return next(((family, size) for family, size in known if family + size == plain), None)


def _named(source: str) -> tuple[str, str]:
    """The kind and the size of ``yolox-s``, or of a file such as LibreYOLO downloads."""
    known = _known_as(source.lower().removesuffix(".pt"))
    if Path(source).suffix or "/" in source:
        fresh = f"; libreyolo:{'-'.join(known)} has fresh weights" if known else ""
        raise ModelError(
            f"libreyolo: there is no file {source}; files are not downloaded, give its path{fresh}"
        )
    if known:
        return known
    near = difflib.get_close_matches(source.lower(), _known(), n=3)
    hint = f"did you mean {', '.join(f'libreyolo:{name}' for name in near)}? " if near else ""
    raise ModelError(
        f"libreyolo: {source!r} is no file and no name; {hint}names are FAMILY-SIZE of {listed(FAMILIES)}"
    )
