"""What the training of a pruned detector starts from: its weights, and its teacher."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autoprune.errors import out_of_memory
from autoprune.importance import Importance
from autoprune.modules.losses import losses_of
from autoprune.modules.run_modes import loss_mode_copy
from autoprune.seeding import scoped
from autoprune.seeding import seed as derive
from autoprune.task.pruning_task import PruningTask
from autoprune.training import Reconstructor, Teacher, recalibrate


def reinitialize(
    task: PruningTask,
    pruned: nn.Module,
    keep: Mapping[str, Sequence[int]],
    seed: int,
    reconstructor: Reconstructor | None = None,
) -> nn.Module:
    """The starting weights of a pruned detector: reconstructed, or with recalibrated BatchNorm only.

    Reconstructed layers reproduce the outputs that the dense statistics were computed from. To recalibrate
    these as well made it worse: the loss of a RetinaNet-R18 at 33% of its GFLOPs rose from 0.62 to 0.85
    (uniform policy), its mAP fell from 44.2 to 43.4. So only norms behind layers that could not be
    reconstructed are recalibrated.

    Args:
        task: the dense detector, and the images to compute on.
        pruned: the pruned detector; not modified.
        keep: {group: kept channels} that it was pruned by.
        seed: decides the images.
        reconstructor: that of the task and the seed, where there is one already.
    """
    config, stale_norms = task.config, None
    if config.reconstruct_images:
        reconstructor = reconstructor or make_reconstructor(task, seed)
        reconstruction = reconstructor(pruned, keep)
        pruned, stale_norms = reconstruction.model, reconstruction.skipped
        if not stale_norms:
            return pruned
    return recalibrate(
        pruned, task.train, config.recalibration_images, config.batch_size, task.device, seed, stale_norms
    )


def check_trainable(task: PruningTask) -> None:
    """Refuses a detector that trials are to train and that gives no losses: each of them would fail.

    Raises:
        ModelError: says why, and what to do.
        TrainingError: memory ran out.
    """
    config = task.config
    if not config.rungs[-1]:
        return
    images, targets = task.train.batch([0], task.device)
    seed = derive(config.seed, "trainable")
    with scoped(seed), torch.no_grad(), out_of_memory("training on one image", "use smaller images"):
        losses_of(loss_mode_copy(task.model), images, targets)


def make_reconstructor(task: PruningTask, seed: int) -> Reconstructor:
    """What reconstructs pruned copies of the task's detector, on the images that the seed decides."""
    images = task.config.reconstruct_images
    return Reconstructor(task.model, task.graph, task.train, images, task.device, seed)


def make_teacher(
    task: PruningTask, keep: Mapping[str, Sequence[int]], importance: Importance | None
) -> Teacher | None:
    """The dense detector as the teacher of one pruned by ``keep``; ``None`` without distillation.

    It runs at the size of the images that the pruned one is trained on, also where that is not its own. The
    demo's dense detector at 96 of 128 pixels, trained for 200 steps at 7e-4 on 1500 images, ended at 66.4 mAP
    so (66.8 before), at 65.2 without a teacher, and at 64.9 with the teacher at 128 pixels and its feature
    maps interpolated, whose levels show objects of other sizes. At 2e-3 it was 64.5 so, and 60.3 without.

    Args:
        task: the dense detector, at that size.
        keep: {group: kept channels}.
        importance: {group: [width]} that may weight the channels; ``None`` weights all equally.
    """
    config = task.config
    if task.parts is None or not (config.distill or (config.distill_logits and task.parts.logits)):
        return None
    weights = importance if config.distill_weighting == "importance" else None
    logits, head = bool(config.distill_logits), bool(config.distill and config.distill_head)
    return Teacher(task.model, task.graph, keep, weights, logits, head)
