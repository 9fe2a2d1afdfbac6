"""A recovery that is finished: what it depends on, and its result read back from its folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from autoprune.config import MAY_CHANGE
from autoprune.detectors import load_state
from autoprune.errors import InputError, RunError
from autoprune.policy import Policy, hash_weights
from autoprune.progress import say
from autoprune.run import names
from autoprune.run.documents import METRICS
from autoprune.task.pruning_task import PruningTask
from autoprune.training import TrainSettings
from autoprune.training.settings import EARLIER

UNRECORDED = ("training data", "validation data")  # in the folders of version 0.1.0


@dataclass(frozen=True)
class Recovered:
    """One recovered detector.

    Attributes:
        folder: holds `policy.yaml`, `model.safetensors` and `metrics.json`, with the loss of each step
            (`losses.csv`) and detections in a few images (`samples.json`); `autoprune.load` reads it.
        policy: what is kept, with the recovered detector's metrics.
        metrics: what `metrics.json` holds.
    """

    folder: Path
    policy: Policy
    metrics: Mapping[str, Any]

    @property
    def map(self) -> float:
        """MAP on the validation split, a fraction."""
        return float(self.metrics["metrics"]["map"])


def identify(task: PruningTask, settings: TrainSettings, keep: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """All that a recovery depends on; a folder made with other values is not reused."""
    config = task.config
    return {
        **asdict(settings),
        "learning_rate": config.learning_rate,  # None where it is chosen
        "norm": task.spec.norm,
        "regrow_rounds": config.regrow_rounds,
        "distill_weighting": config.distill_weighting,
        **({"distill_head": True} if config.distill_head else {}),  # version 0.1.0 did not
        "reconstruct_images": config.reconstruct_images,
        "recalibration_images": config.recalibration_images,
        "dense_weights": task.weights_sha256,
        **task.data_identity,
        "policy": sha256(json.dumps(keep, sort_keys=True).encode()).hexdigest(),
        **({} if task.resize is None else {"resize": task.resize.to_dict()}),
    }


def read_finished(folder: Path, identity: Mapping[str, Any], label: str = "recovery") -> Recovered | None:
    """The result of an earlier call with the same identity; ``None`` where there is none.

    Also ``None``, with a line that says so, where the policy or the weights are missing or damaged: then
    nothing is lost by another recovery.

    Raises:
        RunError: the earlier call had another identity.
    """
    file = folder / names.METRICS_FILE
    if not file.is_file():
        return None
    metrics = METRICS.read(file)
    settings = {**EARLIER, **metrics["settings"]}
    differing = [name for name in identity if settings.get(name) != identity[name]]
    differing = [name for name in differing if name in settings or name not in UNRECORDED]
    if differing:
        name = differing[0]
        # not all settings can be given again: a search refuses others than its own
        again = f"give --{name} {settings.get(name)}, or " if name in MAY_CHANGE else ""
        raise RunError(
            f"{folder} was recovered with other settings: {name} was {settings.get(name)}, now "
            f"{identity[name]}; {again}delete the folder to recover it again"
        )
    if (problem := _damage(folder, metrics)) is not None:
        say(f"{label}: {problem}; it is recovered again")
        return None
    return Recovered(folder, Policy.load(folder / names.POLICY_FILE), metrics)


def _damage(folder: Path, metrics: Mapping[str, Any]) -> str | None:
    """What is wrong with the detector of a finished recovery; version 0.1.0 wrote no hash of its weights."""
    for name in (names.POLICY_FILE, names.WEIGHTS_FILE):
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
    try:
        Policy.load(folder / names.POLICY_FILE)
        weights = hash_weights(load_state(folder / names.WEIGHTS_FILE))
    except InputError as error:
        return str(error).partition(";")[0]
    if metrics.get("model_sha256", weights) != weights:
        return f"{folder / names.WEIGHTS_FILE} holds other weights than those that were recovered"
    return None
