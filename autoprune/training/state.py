"""The state of a training run, and the one step that changes it.

All that is random in a step (which images, which flips, a detector's own sampling) is a function of the
seed and the step, so a run that was killed and resumed equals one that was not.
"""

import copy
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import TrainingError
from autoprune.modules.batch_fit import BatchFit
from autoprune.modules.float_outputs import float_anchors
from autoprune.modules.losses import losses_of
from autoprune.policy import hash_weights
from autoprune.seeding import seed as derive
from autoprune.seeding import seed_all
from autoprune.training import distributed
from autoprune.training.batch_fit import sum_losses
from autoprune.training.batches import TrainSplit
from autoprune.training.capture import Tap
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.distill import Teacher
from autoprune.training.settings import TrainSettings


class TrainingState:
    """A model in training: weights, their moving average, optimizer, steps done.

    Args:
        model: the start. Not changed: a copy is trained.
        settings: length and strength.
        device: where to train.
        teacher: see `train`.

    Attributes:
        tap: a context in which steps must be taken; it records what a teacher compares.
        step: optimizer steps done.
        losses: total loss of each of them.

    Raises:
        TrainingError: there are more processes than images in a batch, or no weights to train.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, device: torch.device, teacher: Teacher | None
    ) -> None:
        if settings.batch_size < distributed.world_size():
            raise TrainingError(
                f"batch_size is {settings.batch_size} for {distributed.world_size()} processes; raise it, "
                "so that each has an image"
            )
        self.settings, self.device = settings, device
        self.teacher = teacher if settings.distill or settings.distill_logits else None
        self.model = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
        self.weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.weights:
            raise TrainingError("the model has no weights to train: every parameter has requires_grad=False")
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.weights, settings.weight_decay),
            lr=settings.learning_rate,
            fused=device.type in ("cpu", "cuda"),  # a third of the time of the other forms on a CPU
        )
        self.tap = Tap(self.model) if self.teacher is None else self.teacher.tap(self.model)
        self.bf16 = settings.bf16 is not False and (
            device.type == "cuda" or bool(settings.bf16 and has_amx())
        )
        self.step = 0
        self.losses: list[float] = []
        self._fit = BatchFit()

    def advance(self, images: list[Tensor], targets: list[dict[str, Any]]) -> float:
        """Takes one optimizer step and returns its loss; seeds Python's, NumPy's and torch's random numbers.

        The device is waited for once, when all but the step itself has been queued: then loss and gradient
        are known to be finite, and no weight or average ever takes part in a step that is not.

        Args:
            images: those of this process, out of ``batch_size``.
            targets: of these images.

        Raises:
            TrainingError: the loss or its gradient is not finite.
            ModelError: see `losses_of`.
        """
        settings, step, rank = self.settings, self.step, distributed.rank()
        scope = (step, rank) if rank else (step,)

        def backward(some: slice) -> dict[str, Tensor]:
            parts = self._losses(images[some], targets[some])
            fraction = len(images[some]) / settings.batch_size  # detectors' losses are means over images
            torch.autograd.backward(torch.stack(list(parts.values())).sum() * fraction)
            return {name: value.detach() * fraction for name, value in parts.items()}

        def reset() -> None:
            seed_all(derive(settings.seed, "step", *scope))  # a detector's own sampling, dropout
            self.optimizer.zero_grad()

        parts = sum_losses(self._fit, len(images), backward, reset)
        total = torch.stack(list(parts.values())).sum()
        summed, uses = distributed.sum_gradients(self.weights.values(), total)
        norm = nn.utils.clip_grad_norm_(self.weights.values(), settings.clip_norm)  # foreach where it exists
        rate = settings.learning_rate_at(step)
        loss = self._checked(parts, summed, norm, uses, rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            new = 1 - settings.ema_decay_at(step)
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), new)
        self.step += 1
        self.losses.append(loss)
        return loss

    def _checked(
        self, parts: dict[str, Tensor], loss: Tensor, norm: Tensor, uses: Tensor | None, rate: float
    ) -> float:
        """The loss, once it and the norm of the gradient are known to be finite: one copy to the host.

        Args:
            parts: the losses that this process sums.
            loss: their sum over all processes.
            norm: of the gradient before it was clipped.
            uses: on how many processes each weight has a gradient; a weight without any loses its zeros.
            rate: the learning rate of the step.
        """
        values = [*parts.values(), loss, norm]
        on_host = torch.cat([torch.stack(values).detach(), *([] if uses is None else [uses])]).tolist()
        own, (total, length), counts = (
            on_host[: len(parts)],
            on_host[len(parts) : len(values)],
            on_host[len(values) :],
        )
        if not math.isfinite(total):
            shown = ", ".join(f"{name} {value:.3g}" for name, value in zip(parts, own, strict=True))
            raise TrainingError(self._not_finite("loss", shown, rate))
        if not math.isfinite(length):
            raise TrainingError(self._not_finite("gradient", f"loss {total:.3g}", rate))
        for weight, count in zip(self.weights.values(), counts, strict=False):
            if not count:
                weight.grad = None
        return float(total)

    def _losses(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's losses, and those of the distillation where there is a teacher; float32 scalars."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16), float_anchors(self.model):
            parts = losses_of(self.model, images, targets)
            if self.teacher is not None:
                weights = {
                    "features": self.settings.distill,
                    "head": self.settings.distill,
                    "logits": self.settings.distill_logits,
                }
                for name, value in self.teacher.loss(self.tap.take()).items():
                    parts[f"distillation of {name}"] = weights[name] * value
        return {name: value.float() for name, value in parts.items()}

    def _not_finite(self, which: str, values: str, rate: float) -> str:
        return (
            f"the {which} is not finite at step {self.step + 1} of {self.settings.steps} (learning rate "
            f"{rate:.3g}; {values}); lower learning_rate or clip_norm, or check the boxes of the data"
        )

    def identity(self, start: nn.Module, split: TrainSplit, start_id: str | None = None) -> dict[str, Any]:
        """What must equal a checkpoint's to resume from it: settings, data and the ``start`` weights.

        Args:
            start: what is trained.
            split: training images.
            start_id: see `train`.
        """
        return {
            **asdict(self.settings),
            "training images": len(split),
            "training data": split.fingerprint,
            "distillation": self.teacher is not None,
            "distillation weighted": self.teacher is not None and self.teacher.weighted,
            **self._distilled_layers(),
            "tensors to train": len(self.weights),  # other norms would have more
            "start weights": hash_weights(start.state_dict()) if start_id is None else start_id,
        }

    def _distilled_layers(self) -> dict[str, list[str]]:
        """What earlier versions, whose checkpoints lack it, did not distill."""
        layers = [] if self.teacher is None else list(self.teacher.layers)
        return {"distilled layers of the head": layers} if layers else {}

    def checkpoint(self, identity: dict[str, Any]) -> Checkpoint:
        """All that `resume_from` needs."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state[weight].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return Checkpoint(identity, self.step, self.losses, tensors)

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Continues where ``checkpoint`` was written."""
        tensors = checkpoint.tensors
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        for name, weight in self.weights.items():
            self.average[name].copy_(tensors[f"average.{name}"])
            if f"optimizer.step.{name}" not in tensors:  # it had no gradient so far, as in no loss's graph
                continue
            moments = {
                key: torch.empty_like(weight).copy_(tensors[f"optimizer.{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            step = tensors[f"optimizer.step.{name}"].to(self.device)
            self.optimizer.state[weight] = {"step": step, **moments}
        self.step, self.losses = checkpoint.step, list(checkpoint.losses)

    def averaged(self, start: nn.Module) -> nn.Module:
        """What `result` would give now; the training can go on.

        Args:
            start: a model of the same shapes, such as the one given at the start. Not changed: a copy of it
                takes the weights, since one of the model in training would copy the teacher's hooks too.
        """
        model = copy.deepcopy(start).to(self.device)
        model.load_state_dict(self.model.state_dict())
        self._average_into(model)
        return model.eval()

    def result(self) -> nn.Module:
        """The model with averaged weights, the last buffers, and tensors in the usual memory order."""
        self._average_into(self.model)
        self.model.zero_grad(set_to_none=True)
        self.model.to(memory_format=torch.contiguous_format)
        return self.model.eval()

    @torch.no_grad()
    def _average_into(self, model: nn.Module) -> None:
        """Gives the trained weights of ``model`` their averages, where they are averaged."""
        if self.settings.ema_decay > 0:
            for name, weight in model.named_parameters():
                if name in self.average:
                    weight.copy_(self.average[name])


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware; without, autocast is 4 to 9 times slower."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def _decay_groups(weights: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of convolutions and linear layers, and norms and biases, which don't decay."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
