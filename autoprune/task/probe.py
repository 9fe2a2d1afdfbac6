"""How far a pruned detector is from the dense one where its mAP says nothing yet: loss and feature distance.

Both are taken on a few validation images as they are, always the same ones, so the dense detector's features
of them are computed once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.graph.groups import kept_positions
from autoprune.modules.run_modes import loss_mode_copy
from autoprune.seeding import scoped
from autoprune.seeding import seed as derive
from autoprune.task.pruning_task import PruningTask
from autoprune.training.capture import Tap
from autoprune.training.distill import correlation_distance

IMAGES = 32


class Probe:
    """Measures policies of one dense detector on the same images, spread evenly over those of the proxies.

    Args:
        task: detector and data.
    """

    def __init__(self, task: PruningTask) -> None:
        self._task = task
        count = min(task.config.proxy_images or len(task.val), len(task.val))
        chosen = np.unique(np.linspace(0, count - 1, min(IMAGES, count)).round().astype(int)).tolist()
        size = task.config.batch_size
        self._batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        self._seed = derive(task.config.seed, "probe")
        self._dense: list[list[Tensor]] | None = None  # [batch][output], float16 [n, c, h, w]

    @property
    def image_ids(self) -> list[int]:
        """COCO's ids of the images."""
        return [int(self._task.val.image_ids[index]) for batch in self._batches for index in batch]

    def __call__(self, model: nn.Module, keep: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """What is known of a pruned detector.

        Args:
            model: the pruned detector; not changed.
            keep: the channels that it kept.

        Returns:
            ``loss``, the detection loss, where the detector gives one; ``features``, the distance of the
            feature maps to the dense detector's (see `training.distill.correlation_distance`, summed over
            the maps), where they are known. Means over the batches.
        """
        parts = self._task.parts
        if self._dense is None and parts is not None:
            passes = self._passes(self._task.model)
            self._dense = [[output.half() for output in features] for _, features in passes]
        kept = [kept_positions(group, index, keep) for group, index in (parts.features if parts else ())]
        losses: list[float] = []
        distances: list[float] = []
        for batch, (loss, features) in enumerate(self._passes(model)):
            losses += [] if loss is None else [loss]
            if self._dense is not None:
                pairs = zip(features, self._dense[batch], kept, strict=True)
                distances.append(
                    sum(float(correlation_distance(ours, theirs[:, k])) for ours, theirs, k in pairs)
                )
        measured = {"loss": losses, "features": distances}
        return {name: float(np.mean(values)) for name, values in measured.items() if values}

    def loss(self, model: nn.Module) -> float | None:
        """The detection loss alone, of any detector; ``None`` where it gives none."""
        losses = [loss for loss, _ in self._passes(model) if loss is not None]
        return float(np.mean(losses)) if losses else None

    @torch.no_grad()
    def _passes(self, model: nn.Module) -> Iterator[tuple[float | None, list[Tensor]]]:
        """Loss and features of each batch; a detector gives its losses in training mode only."""
        model = loss_mode_copy(model).to(memory_format=torch.channels_last)
        with Tap(model, self._task.parts) as tap:
            for indices in self._batches:
                images, targets = self._task.val.batch(indices, self._task.device)
                with scoped(self._seed):  # two-stage detectors sample
                    losses: Any = model(images, targets)
                loss = None
                if isinstance(losses, Mapping) and losses:
                    loss = float(sum(float(torch.as_tensor(value).sum()) for value in losses.values()))
                yield loss, tap.take().features if self._task.parts is not None else []
