"""In which precision detectors are evaluated: bfloat16 on CUDA where that does not change the dense mAP."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from autoprune.data.evaluate import evaluate
from autoprune.errors import ConfigError
from autoprune.progress import say
from autoprune.task.pruning_task import PruningTask

TOLERANCE = 0.001
"""Difference of the dense mAP, 0.1 points, up to which bfloat16 is taken."""
NOTE = "detection"
"""Under which a run's study keeps what was checked."""


@dataclass(frozen=True)
class DetectionPrecision:
    """In which precision the detectors of a run are evaluated, and the mAPs that decided it.

    Attributes:
        precision: ``float32`` or ``bfloat16``.
        map_float32: mAP of the dense detector, a fraction; ``None`` where nothing was compared.
        map_bfloat16: the same under autocast.
    """

    precision: Literal["float32", "bfloat16"]
    map_float32: float | None = None
    map_bfloat16: float | None = None

    @property
    def line(self) -> str:
        """What was checked, in words."""
        if self.map_float32 is None or self.map_bfloat16 is None:
            return f"detection in {self.precision}"
        return (
            f"detection in {self.precision}: the dense detector has mAP {100 * self.map_bfloat16:.2f} in "
            f"bfloat16, {100 * self.map_float32:.2f} in float32"
        )


def check_detection(task: PruningTask) -> DetectionPrecision:
    """The precision that the settings give, or where they leave it open the one that the dense mAP allows.

    Two evaluations of the dense detector on the images of trials, on CUDA only: elsewhere it is float32.

    Args:
        task: detector and data.

    Raises:
        ConfigError: the settings give bfloat16, and the device is not CUDA.
    """
    config, device = task.config, task.device.type
    if config.detection_precision == "bfloat16" and device != "cuda":
        raise ConfigError(
            f"detection_precision bfloat16 does nothing on this device ({device}): only on CUDA is detection "
            "done in it; omit it, or give float32"
        )
    if config.detection_precision != "auto":
        return DetectionPrecision(config.detection_precision)
    if device != "cuda":
        return DetectionPrecision("float32")
    full, half = (
        evaluate(task.model, task.val, task.device, config.batch_size, config.proxy_images, amp=amp).map
        for amp in (False, True)
    )
    same = abs(full - half) <= TOLERANCE + 1e-9
    checked = DetectionPrecision("bfloat16" if same else "float32", full, half)
    say(checked.line)
    return checked


def noted_detection(notes: Mapping[str, Any]) -> DetectionPrecision | None:
    """What the notes of a run hold of an earlier check."""
    return DetectionPrecision(**notes[NOTE]) if NOTE in notes else None


def with_detection(task: PruningTask, checked: DetectionPrecision) -> PruningTask:
    """The task whose settings name the precision, so that workers need not check again."""
    return replace(task, config=task.config.model_copy(update={"detection_precision": checked.precision}))
