"""Measures sensitivity curves: one group narrowed and reconstructed, its loss against the dense one's."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from pydantic import FiniteFloat, ValidationError
from torch import nn

from autoprune.errors import RunError, TrainingError, out_of_memory
from autoprune.files import write_text
from autoprune.graph import ChannelGroup, prune
from autoprune.importance import Importance, most_important, settings_hash
from autoprune.importance.curves import Curve, ratios_to_widths
from autoprune.progress import count_of, say, track
from autoprune.seeding import seed as derive
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import PruningTask
from autoprune.task.training_start import make_reconstructor, reinitialize
from autoprune.validation import Strict, first_problem


class _File(Strict):
    """What the file holds."""

    key: str
    curves: dict[str, tuple[tuple[int, ...], tuple[FiniteFloat, ...]]]


Measure = Callable[[Sequence[str]], Iterable[tuple[str, Curve]]]
"""Measures the curves of some groups, in any order."""

MANY = 20
"""More groups than these take long enough to say how to go without."""
_AGAIN = "delete the file, and the curves are measured again"
RATIOS = (0.25, 0.5, 0.7, 0.85, 0.95)  # denser where curves bend


def measure_curves(
    task: PruningTask, order: Importance, path: Path, measure: Measure, empty: bool = False
) -> dict[str, Curve]:
    """The curve of every prunable group, from the file or measured now; an interrupt loses one group at most.

    Args:
        task: detector and data.
        order: {group: [width]}, which says the channels that go first.
        path: JSON file to read curves from and to keep them in. Curves of other weights, data, order or
            settings are not used.
        measure: what measures those that the file does not hold.
        empty: whether trials may empty groups; see `SensitivityProbe`.

    Raises:
        RunError: the file is damaged, or can't be written.
    """
    key = _key(task, order, empty)
    curves = _read(path, key, task.graph.prunable)
    if missing := [name for name in task.graph.prunable if name not in curves]:
        without = ": --no-curves goes on without, by the criterion" if len(missing) > MANY else ""
        say(f"sensitivity curves of {count_of(len(missing), 'group')}, each narrowed alone{without}")
        total, done = len(task.graph.prunable), len(task.graph.prunable) - len(missing)
        for name, curve in track(measure(missing), "sensitivity curves", total, done):
            curves[name] = curve
            write_text(path, _File(key=key, curves=curves).model_dump_json() + "\n")
    else:
        say(f"the sensitivity curves are read from {path}")
    return {name: curves[name] for name in task.graph.prunable}


def curves_beside(space: Path) -> Path:
    """Where `autoprune space` keeps the curves that a space file was made from, for later searches."""
    return space.with_suffix(".curves.json")


def copy_curves(space: Path | None, path: Path) -> None:
    """Initializes a run's ``path`` with the curves beside its space file.

    Curves of other settings do no harm: they are measured again.

    Raises:
        RunError: the file beside the space is damaged; blamed here, not on its copy.
    """
    if space is not None and curves_beside(space).is_file() and not path.exists():
        write_text(path, _load(curves_beside(space)).model_dump_json() + "\n")


def widths_of(group: ChannelGroup, empty: bool) -> tuple[int, ...]:
    """The widths that the curve of a group is measured at, falling; for ``empty`` see `SensitivityProbe`."""
    return (*ratios_to_widths(group, RATIOS), *((0,) if empty and group.can_empty else ()))


class SensitivityProbe:
    """Measures the curve of one group at a time; the same group gives the same curve every time.

    Args:
        task: detector and data.
        order: {group: [width]}, which says the channels that go first.
        empty: whether trials may empty groups: the curves of those that can be emptied then end without them.

    Raises:
        TrainingError: the detector gives no losses.
    """

    def __init__(self, task: PruningTask, order: Importance, empty: bool = False) -> None:
        self._task, self._order, self._empty = task, order, empty
        self.seed = derive(task.config.seed, "curves")
        self.probe = Probe(task)
        with out_of_memory("measuring the loss", "lower batch_size"):
            self._dense = self._loss(task.model)
            images = task.config.reconstruct_images
            self._reconstructor = make_reconstructor(task, self.seed) if images else None

    def __call__(self, name: str, ratios: tuple[float, ...] | None = None) -> Curve:
        """The curve of a prunable group at `widths_of`, or at the widths of other pruning ratios."""
        task, group = self._task, self._task.graph.groups[name]
        widths = widths_of(group, self._empty) if ratios is None else ratios_to_widths(group, ratios)
        rises = []
        for width in widths:
            keep = {name: most_important(self._order[name], group, width)}
            with out_of_memory(f"narrowing {name}", "lower batch_size or reconstruct_images"):
                pruned = prune(task.model, task.graph, keep)
                start = reinitialize(task, pruned, keep, self.seed, self._reconstructor)
                rises.append(self._loss(start) - self._dense)
        return Curve(widths, tuple(rises))

    def _loss(self, model: nn.Module) -> float:
        if (loss := self.probe.loss(model)) is None:
            raise TrainingError(
                f"{type(model).__name__} gives no losses in training mode, so no sensitivity curve can be "
                "measured; give --no-curves (YAML: curves: false)"
            )
        return loss


def _key(task: PruningTask, order: Importance, empty: bool) -> str:
    """Hash of all that curves depend on."""
    config, scores = task.config, sha256()
    for name in task.graph.prunable:
        scores.update(order[name].tobytes())
    return settings_hash(
        weights=task.weights_sha256,
        arguments=task.spec.arguments,
        data=task.data_identity,
        order=scores.hexdigest(),
        reconstruction=(config.reconstruct_images, config.recalibration_images),
        images=Probe(task).image_ids,
        ratios=(*RATIOS, 1.0) if empty else RATIOS,
        seed=config.seed,
    )


def _read(path: Path, key: str, groups: Mapping[str, ChannelGroup]) -> dict[str, Curve]:
    """The curves that a file holds under this key.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return {}
    content = _load(path)
    if content.key != key:
        say(f"{path} holds curves of other weights, data or settings; they are measured again")
        return {}
    curves = {name: Curve(*curve) for name, curve in content.curves.items() if name in groups}
    for name, curve in curves.items():
        below = -1 if groups[name].can_empty else 0
        falling = [groups[name].width, *curve.widths, below]
        if len(curve.widths) != len(curve.rises) or falling != sorted(set(falling), reverse=True):
            raise RunError(
                f"{path}: the curve of `{name}` must have a loss for each of its widths, which fall from "
                f"below {groups[name].width}; {_AGAIN}"
            )
    return curves


def _load(path: Path) -> _File:
    try:
        return _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = first_problem(error, _File, str(path))
        raise RunError(f"{problem}; {_AGAIN}") from error
