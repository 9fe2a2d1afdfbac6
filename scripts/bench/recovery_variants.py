"""The ways to recover that `recoveries.py` compares: each trains one pruned detector for the same steps."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.cost.budget import Budget, parse_budget
from autoprune.data import demo_detector
from autoprune.data.coco import open_data
from autoprune.data.shapes import make_shapes
from autoprune.detectors import detector_inputs, pixel_resizing
from autoprune.graph import analyze, prune
from autoprune.images.batch import make_sample, to_batch
from autoprune.importance import Importance
from autoprune.space.one_shot import greedy
from autoprune.space.space import Space
from autoprune.task.pruning_task import PruningTask
from autoprune.task.training_start import make_teacher, reinitialize
from autoprune.training import TrainSettings, train
from autoprune.training.distill import correlation_distance

STAGES = ("backbone.body.layer2.1.conv2", "backbone.body.layer3.1.conv2")
UNLABELLED = 0.5  # score from which a box of the teacher counts as true


@dataclass(frozen=True)
class Case:
    """A policy, its reconstructed detector, and how it is trained by default."""

    task: PruningTask
    scores: Importance
    keep: Mapping[str, Sequence[int]]
    start: nn.Module
    settings: TrainSettings
    space: Space
    bound: Budget


def run(
    case: Case, start: nn.Module, settings: TrainSettings, split: Any = None, head: bool = False
) -> nn.Module:
    """Trains with the dense detector's features as targets, and with what its head predicts from."""
    update = {"distill": settings.distill, "distill_logits": settings.distill_logits, "distill_head": head}
    config = case.task.config.model_copy(update=update)
    teacher = make_teacher(replace(case.task, config=config), case.keep, case.scores)
    return train(start, split or case.task.train, settings, case.task.device, teacher).model


def taught(case: Case, head: bool = False, **changes: Any) -> nn.Module:
    """By features, and by the head where that is asked for, with these training settings."""
    return run(case, case.start, replace(case.settings, **changes), head=head)


class Imitating(nn.Module):
    """A detector in training that also returns its distance from the dense one as a loss.

    Args:
        student: the pruned detector.
        dense: the dense one.
        layers: modules whose outputs are compared, by their Pearson correlations.
        kept: for each, the channels of the dense output that the student has.
        boxes: weight of the distance of the box deltas, weighted by the dense detector's scores.
        towers: weight of the distances of the layers' outputs.
    """

    def __init__(
        self,
        student: nn.Module,
        dense: nn.Module,
        layers: Sequence[str] = (),
        kept: Sequence[np.ndarray[Any, Any]] = (),
        boxes: float = 0.0,
        weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.student = student
        self._dense = [copy.deepcopy(dense).eval().requires_grad_(False)]  # in a list: not trained
        self._layers, self._kept, self._boxes, self._weight = layers, kept, boxes, weight

    @property
    def backbone(self) -> Any:
        """What the default teacher compares."""
        return self.student.backbone

    @property
    def head(self) -> Any:
        """What the default teacher compares."""
        return self.student.head

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        """The student's losses and the distances."""
        if not self.training:
            return self.student(images, targets)
        ours: dict[str, list[Any]] = {}
        theirs: dict[str, list[Any]] = {}
        with Recording(self.student, (*self._layers, "head"), ours):
            losses = dict(self.student(images, targets))
        dense: Any = self._dense[0]
        with torch.no_grad(), Recording(dense, (*self._layers, "head"), theirs):
            batch, _ = dense.transform(images, None)
            dense.head(list(dense.backbone(batch.tensors).values()))
        for name, kept in zip(self._layers, self._kept, strict=True):
            pairs = zip(ours[name], theirs[name], strict=True)
            distances = [correlation_distance(a, b[:, torch.as_tensor(kept)]) for a, b in pairs]
            losses[f"distance of {name}"] = self._weight * torch.stack(distances).mean()
        if self._boxes:
            (mine,), (target,) = ours["head"], theirs["head"]
            weight = target["cls_logits"].sigmoid().amax(2, keepdim=True)
            distance = F.smooth_l1_loss(mine["bbox_regression"], target["bbox_regression"], reduction="none")
            losses["distance of boxes"] = self._boxes * (weight * distance).sum() / (4 * weight.sum())
        return losses


class Recording(ExitStack):
    """Keeps the outputs of these modules in ``into`` while it is open."""

    def __init__(self, model: nn.Module, names: Sequence[str], into: dict[str, list[Any]]) -> None:
        super().__init__()
        for name in names:
            hook = lambda _m, _i, output, name=name: into.setdefault(name, []).append(output)  # noqa: E731
            self.callback(model.get_submodule(name).register_forward_hook(hook).remove)


def imitating(case: Case, layers: Sequence[str] = (), logits: float = 0.0, **weights: float) -> Any:
    """The default recovery, with more of the dense detector's outputs as targets."""
    kept = [kept_outputs(case, layer) for layer in layers]
    wrapped = Imitating(case.start, case.task.model, layers, kept, **weights)
    return run(case, wrapped, replace(case.settings, distill_logits=logits)).student


def kept_outputs(case: Case, layer: str) -> np.ndarray[Any, Any]:
    """Output channels of a layer that the policy keeps."""
    for name, group in case.task.graph.groups.items():
        for member in group.members:
            if (member.tensor, member.axis) == (f"{layer}.weight", 0):
                kept = case.keep.get(name, range(group.width))
                return np.flatnonzero(np.isin(member.channels, list(kept)))
    raise SystemExit(f"no channel group holds the outputs of {layer}")


def gradual(case: Case) -> nn.Module:
    """From dense over 50, 33 and 20% of the GFLOPs to the budget, in as many steps in all."""
    task, model = case.task, case.task.model
    bounds = [parse_budget(each, "gflops", task.graph.gflops()) for each in ("50%", "33%", "20%")]
    keeps = [policy(case, bound) for bound in bounds if bound.limit > case.bound.limit] + [dict(case.keep)]
    for early, late in zip(keeps[-2::-1], keeps[:0:-1], strict=True):  # a channel never comes back
        for name, kept in late.items():
            early[name] = sorted({*early.get(name, range(task.graph.groups[name].width)), *kept})
    steps = case.settings.steps // len(keeps)
    done: Mapping[str, Sequence[int]] = {}
    for keep in keeps:
        places = {
            name: [list(done.get(name, kept_all(task, name))).index(c) for c in kept]
            for name, kept in keep.items()
        }
        graph = analyze(model, detector_inputs(task.input_size))
        now = replace(task, model=model, graph=graph)
        start = reinitialize(now, prune(model, graph, places), places, case.settings.seed)
        teacher = make_teacher(without_head(task), keep, case.scores)
        settings = replace(case.settings, steps=steps)
        model, done = train(start, task.train, settings, task.device, teacher).model, keep
    return model


def without_head(task: PruningTask) -> PruningTask:
    """The task where only features are distilled."""
    return replace(task, config=task.config.model_copy(update={"distill_head": False}))


def policy(case: Case, bound: Budget) -> dict[str, Sequence[int]]:
    """The one-shot policy of another budget."""
    widths = greedy(case.space, case.scores, (bound,), case.task.config.criterion).widths or {}
    return dict(case.space.keep(case.space.as_array(widths)))


def kept_all(task: PruningTask, group: str) -> range:
    """All channels of a group."""
    return range(task.graph.groups[group].width)


class Unlabelled:
    """As many images again, whose boxes are the dense detector's; an epoch is twice as long.

    Args:
        split: the training images.
        dense: the dense detector.
        more: images whose boxes are not used.
    """

    def __init__(self, split: Any, dense: nn.Module, more: Any) -> None:
        self._split, self._dense, self._more = split, dense, more
        self.fingerprint = split.fingerprint
        self._boxes: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of images."""
        return 2 * len(self._split)

    def get(self, index: int) -> Any:
        """An image and its target."""
        if index < len(self._split):
            return self._split.get(index)
        image, target = self._more.get(index % len(self._more))
        if index not in self._boxes:
            with torch.no_grad():
                (seen,) = self._dense([image / 255])
            sure = seen["scores"] >= UNLABELLED
            self._boxes[index] = {name: seen[name][sure] for name in ("boxes", "labels")}
        return image, {**target, **self._boxes[index]}

    def batch(self, indices: Sequence[int], device: Any, flip: Any = None) -> Any:
        """Images and targets."""
        flips = [False] * len(indices) if flip is None else flip
        chosen = zip(map(self.get, indices), flips, strict=True)
        return to_batch([make_sample(image, target, mirror) for (image, target), mirror in chosen], device)


def unlabelled(case: Case) -> nn.Module:
    """Half of each batch are other images, with the dense detector's boxes."""
    assert isinstance(case.task.config.data, Path)
    folder = case.task.config.data.parent / "unlabelled"
    make_shapes(folder, demo_detector.DATA_SEED + 1, train=1200, val=1, size=demo_detector.IMAGE_SIZE)
    more = open_data(folder, "train", pixel_resizing(case.task.model))
    return run(case, case.start, case.settings, Unlabelled(case.task.train, case.task.model, more))


VARIANTS: dict[str, Callable[[Case], nn.Module]] = {
    "features": taught,
    "no teacher": partial(taught, distill=0.0),
    "features, weight 4": partial(taught, distill=4.0),
    "features, head": partial(taught, head=True),
    "features, head, logits": partial(taught, head=True, distill_logits=1.0),
    "features, logits": partial(taught, distill_logits=1.0),
    "features, logits, weight 4": partial(taught, distill_logits=4.0),
    "features, boxes": partial(imitating, boxes=1.0),
    "features, logits, boxes": partial(imitating, boxes=1.0, logits=1.0),
    "features, stages of the backbone": partial(imitating, layers=STAGES, weight=1.0),
    "features, gradual cuts": gradual,
    "features, augmented images": partial(taught, augment=True),
    "features, head, augmented images": partial(taught, head=True, augment=True),
    "features, unlabelled images": unlabelled,
    "features, weight decay 0.05": partial(taught, weight_decay=0.05),
}
"""Name of each way → what trains; "features, head" is the default."""
