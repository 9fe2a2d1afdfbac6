"""Back into Ultralytics: a checkpoint that `YOLO` loads, and its trainers without a rebuilt architecture."""

import copy
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.files import write_bytes
from autoprune.progress import say
from autoprune.vendors.detector import VendorDetector
from autoprune.vendors.ultralytics_library import DEFAULT_CFG_DICT, VERSION, RTDETRTrainer, heads, yolo


def save(detector: nn.Module, path: str | Path, names: Mapping[int, str] | None = None) -> None:
    """Writes a checkpoint of Ultralytics, in float32; `YOLO(path)` has the detections of ``detector``.

    Args:
        detector: a detector of this library.
        path: the file, which ends in ``.pt``.
        names: the name of each label, from 1; ``None`` keeps the names that it has.

    Raises:
        ModelError: it is no detector of Ultralytics, or groups of it are emptied.
        RunError: the file can't be written.
    """
    model = copy.deepcopy(_own(detector)).cpu().float().eval()
    foreign = next((type(m) for m in model.modules() if type(m).__module__.startswith("autoprune.")), None)
    if foreign is not None:
        raise ModelError(
            "the policy empties whole groups, and Ultralytics can't fuse a convolution that is gone; search "
            "with max_ratio below 1 in the space, or export to onnx"
        )
    if names is not None:
        model.names = {n: names.get(n + 1, str(n)) for n in range(model.nc)}
    task, imgsz, stride = model.task, int(model.args.imgsz), int(max(model.stride))
    if imgsz % stride:
        say(f"{path}: the detector works at {imgsz} pixels; Ultralytics rounds up to multiples of {stride}")
    chosen = getattr(detector, "selection", None)  # of a detector of ours
    if chosen is not None and not chosen.nms and getattr(model.model[-1], "one2one_cv2", None) is not None:
        say(f"{path}: give nms=False to predict, val and export of Ultralytics, or they run the other head")
    content = {
        "epoch": -1,
        "model": model,
        "ema": None,
        "optimizer": None,
        "train_args": {**DEFAULT_CFG_DICT, "task": task, "imgsz": imgsz},
        "date": datetime.now(UTC).isoformat(),
        "version": VERSION,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
    }
    file = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save(content, file)
    write_bytes(Path(path), file.getbuffer())


def trainer(model: nn.Module | None = None, base: Any = None) -> Any:
    """A trainer of Ultralytics that trains a pruned model as it is: its own rebuilds it from the YAML.

    ``YOLO("pruned.pt").train(trainer=trainer(), data=…)`` continues from a file. Trainings on several GPUs
    import the trainer by its name: give them ``autoprune.vendors.ultralytics_tools.DetectionTrainer``.

    Args:
        model: a detector, or a model of Ultralytics, to begin with; ``None`` takes the one that is trained.
        base: the trainer to derive from; ``None`` takes that of the model's task, or that of detection.

    Returns:
        The class, for ``YOLO.train(trainer=…)``.

    Raises:
        ModelError: ``model`` is none of Ultralytics.
    """
    own = None if model is None else _own(model)
    if base is None:
        base = yolo.detect.DetectionTrainer if own is None else _trainer_of(own)
    return type(f"Pruned{base.__name__}", (base,), {"get_model": _keeping(own), "__module__": __name__})


def _keeping(own: Any) -> Any:
    """A `get_model` that returns what there is, in place of a fresh model with those weights that fit."""

    def get_model(self: Any, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        start = own if own is not None else weights
        if not isinstance(start, nn.Module):
            raise ModelError(
                "there is no model to go on with: train YOLO('pruned.pt'), or give trainer() the detector"
            )
        model: Any = copy.deepcopy(start).float().train()
        if (classes := self.data["nc"]) != (has := model.model[-1].nc):
            raise ModelError(
                f"the model detects {has} classes and the data has {classes}; it can't be given others"
            )
        if not isinstance(self, needed := _trainer_of(model)):
            wrong = type(self).__bases__[0].__name__
            raise ModelError(
                f"{needed.__name__} of Ultralytics trains such a model, not {wrong}: give "
                f"trainer=trainer(autoprune.load(folder)), or trainer(base={needed.__name__})"
            )
        model.criterion = None
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model

    return get_model


def _own(detector: Any) -> Any:
    """The model of Ultralytics in a detector."""
    model = detector.unwrap() if isinstance(detector, VendorDetector) else detector
    if not isinstance(getattr(model, "model", None), nn.Sequential) or not hasattr(model, "yaml"):
        raise ModelError(
            f"{type(model).__name__} is no model of Ultralytics; give what autoprune.load returns"
        )
    follow_widths(model)
    return model


def follow_widths(model: Any) -> None:
    """Sets the widths that blocks keep as numbers, which only the exporter of Ultralytics reads, in place."""
    for block in model.modules():
        if hasattr(block, "forward_split") and isinstance(getattr(block, "c", None), int):
            block.c = block.cv1.conv.out_channels // 2  # it splits these in two


def _trainer_of(model: Any) -> Any:
    if isinstance(model.model[-1], heads.RTDETRDecoder):
        return RTDETRTrainer
    of_task = {"segment": yolo.segment.SegmentationTrainer, "pose": yolo.pose.PoseTrainer}
    return {**of_task, "obb": yolo.obb.OBBTrainer}.get(model.task, yolo.detect.DetectionTrainer)


DetectionTrainer = trainer()
"""`trainer` of detection by a name, which the processes of several GPUs import."""
DetectionTrainer.__name__ = DetectionTrainer.__qualname__ = "DetectionTrainer"
