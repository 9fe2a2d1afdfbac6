"""What a smaller input size costs, in the unit of channels' importance, so that a search can weigh both.

Criteria estimate the rise of the loss up to a factor, and none knows what a reconstruction gives back. So a
size is compared with channels that save as many GFLOPs: its importance is theirs, times how much more the
loss rises by the size than by removing (and reconstructing) them. On the demo's detector the dense one at
96 of 128 pixels (56% of the GFLOPs) loses 10.5 mAP, and 4.6 times as much loss as the uniform policy of
these GFLOPs, which loses 2.8.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoprune.cost.budget import Budget
from autoprune.graph import prune
from autoprune.importance import comparable, load, save, settings_hash
from autoprune.progress import say
from autoprune.seeding import seed as derive
from autoprune.space.one_shot import greedy_levels
from autoprune.space.space import Space, Widths
from autoprune.space.width_options import make_width_options, removed_at, widths_at
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import PruningTask
from autoprune.task.training_start import reinitialize

SIZE_LOSSES = "size_losses"  # beside the criteria in `importance.safetensors`
LARGEST_RATIO = 8.0  # and its inverse the smallest: what two measurements on a few images are trusted for


def size_importance(
    task: PruningTask, space: Space, criterion: str, path: Path | None = None
) -> dict[int, float]:
    """The importance that each smaller input size removes, by the pixels of the shorter side.

    The detection loss is that of the validation images of `Probe`, without any training. Where the detector
    gives none, a size counts as the channels that save as many GFLOPs. A smaller size never counts for less
    than a larger one.

    Args:
        task: detector and data, at the detector's own input size.
        space: the search space at that size, with importance.
        criterion: what scored its channels.
        path: `importance.safetensors` to read the losses from and to keep them in.

    Returns:
        Empty where the search has one input size.

    Raises:
        ValueError: the space was resolved without importance.
    """
    if not task.smaller:
        return {}
    if space.importance is None:
        raise ValueError("the space has no importance; give it to resolve()")
    options = make_width_options(space, comparable(space.importance, criterion))
    least = float(space.cost("gflops", space.lowest))
    removed: dict[int, float] = {}
    widths: dict[int, Widths] = {}
    for pixels, sized in task.smaller.items():
        bound = (Budget("gflops", max(sized.graph.gflops(), least)),)
        levels = greedy_levels(space, options, bound)
        removed[pixels], widths[pixels] = removed_at(options, levels), widths_at(space, options, levels)
    ratios = _ratios(task, space, widths, path)
    result: dict[int, float] = {}
    highest = 0.0
    for pixels in sorted(removed, reverse=True):
        highest = result[pixels] = max(highest, removed[pixels] * ratios.get(pixels, 1.0))
    return result


def _ratios(
    task: PruningTask, space: Space, widths: Mapping[int, Widths], path: Path | None
) -> dict[int, float]:
    """How much more the loss rises by each size than by widths of as many GFLOPs; empty without losses.

    Args:
        task: detector and data.
        space: says which channels a width keeps.
        widths: [G] to compare each size with.
        path: file to read the losses from and to keep them in.
    """
    losses = _losses(task, space, widths, path)
    ratios = {}
    for pixels in widths if losses else ():
        (dense,), (by_size, by_channels) = losses["dense"], losses[str(pixels)]
        rises = max(by_size - dense, 0.0), max(by_channels - dense, 1e-12)
        ratios[pixels] = float(np.clip(rises[0] / rises[1], 1 / LARGEST_RATIO, LARGEST_RATIO))
        say(
            f"the dense detector's loss rises by {rises[0]:.3g} at {pixels} pixels, and by "
            f"{max(by_channels - dense, 0.0):.3g} at its own size where channels of as many GFLOPs are pruned"
        )
    return ratios


def _losses(
    task: PruningTask, space: Space, widths: Mapping[int, Widths], path: Path | None
) -> Mapping[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Losses of the dense detector, and for each size of it at that size, and of the pruned one."""
    config, probe = task.config, Probe(task)
    seed = derive(config.seed, "input sizes")
    key = settings_hash(
        weights=task.weights_sha256,
        arguments=task.spec.arguments,
        criterion=config.criterion,
        widths={pixels: each.tolist() for pixels, each in widths.items()},
        images=probe.image_ids,
        settings=[config.batch_size, config.reconstruct_images, config.recalibration_images, seed],
        data=[task.train.fingerprint, task.val.fingerprint],
    )
    if path is not None and (stored := load(path, SIZE_LOSSES, key)) is not None:
        return stored
    if (dense := probe.loss(task.model)) is None:
        return {}
    losses = {"dense": np.array([dense])}
    for pixels, each in widths.items():
        sized, keep = task.at(pixels), space.keep(each)
        pruned = reinitialize(task, prune(task.model, task.graph, keep), keep, seed)
        pair = Probe(sized).loss(sized.model), probe.loss(pruned)
        losses[str(pixels)] = np.array(pair, dtype=np.float64)
    if path is not None:
        save(path, SIZE_LOSSES, key, losses)
    return losses
