"""A batch in parts gives the gradients of the whole; the memory of a device is a stand-in that refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from autoprune.errors import ModelError, TrainingError
from autoprune.modules.batch_fit import BatchFit
from autoprune.training import TrainSettings, train
from autoprune.training.batch_fit import sum_losses

CPU = torch.device("cpu")


class SmallMemory:
    """A device that holds so many images at once: more fail as torch's allocator on CUDA fails."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, list[int]()

    def allocate(self, images: int) -> None:
        self.sizes.append(images)
        if images > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def hold(self, model: nn.Module) -> nn.Module:
        """A detector that needs this memory for its images."""
        model.register_forward_pre_hook(
            lambda module, args: self.allocate(len(args[0])) if module.training else None
        )
        return model


def weights_after(model: nn.Module, split: Any, batch: int, **changes: Any) -> dict[str, Tensor]:
    # plain gradient steps, almost: AdamW's first steps divide by the gradient, which makes round-off large
    values = {"learning_rate": 1e-3, "clip_norm": 1e9, "ema_decay": 0.0, "weight_decay": 0.0, **changes}
    settings = TrainSettings(3, batch_size=batch, warmup=0, **values)
    return dict(train(model, split, settings, CPU).model.state_dict())


@pytest.mark.parametrize("most", [3, 2, 1])
def test_parts_train_a_retinanet_as_the_whole_batch_does(
    tiny_retinanet: Callable[[type[nn.Module]], nn.Module], image_split: Any, most: int
) -> None:
    whole = weights_after(tiny_retinanet(FrozenBatchNorm2d), image_split, 6)
    memory = SmallMemory(most)
    parts = weights_after(memory.hold(tiny_retinanet(FrozenBatchNorm2d)), image_split, 6)
    assert max(size for size in memory.sizes if size <= most) == most
    assert sum(size for size in memory.sizes if size <= most) >= 3 * 6
    moved = total = 0.0
    start = tiny_retinanet(FrozenBatchNorm2d).state_dict()
    for name, value in whole.items():
        moved += float((value - start[name]).square().sum())
        total += float((value - parts[name]).square().sum())
    assert total < 1e-3 * moved, "far closer to each other than to the start"


def test_the_gradients_of_parts_add_up_to_those_of_the_batch(
    tiny_retinanet: Callable[[type[nn.Module]], nn.Module], image_split: Any
) -> None:
    """Against one backward pass of the mean loss, in float64."""
    model = tiny_retinanet(FrozenBatchNorm2d).double().train()
    images, targets = image_split.batch(range(6), CPU)
    images = [image.double() for image in images]
    sum(model(images, targets).values()).backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    memory, fit = SmallMemory(2), BatchFit()

    def backward(some: slice) -> dict[str, Tensor]:
        memory.allocate(len(images[some]))
        losses = model(images[some], targets[some])
        fraction = len(images[some]) / 6
        (sum(losses.values()) * fraction).backward()
        return {name: value.detach() * fraction for name, value in losses.items()}

    sum_losses(fit, 6, backward, model.zero_grad)
    assert (fit.most, memory.sizes) == (2, [6, 3, 2, 2, 2])
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_a_failed_step_leaves_nothing_behind() -> None:
    """Memory that runs out in the second part: the gradients of the first are not counted twice."""
    weight, fit, failures = torch.zeros(1, requires_grad=True), BatchFit(), [0]

    def backward(some: slice) -> dict[str, Tensor]:
        if some.start == 4 and not failures[0]:
            failures[0] = 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss = weight.sum() * (some.stop - some.start)
        loss.backward()
        return {"loss": torch.tensor(float(some.stop - some.start))}

    def reset() -> None:
        weight.grad = None

    fit.most = 4
    assert sum_losses(fit, 8, backward, reset) == {"loss": torch.tensor(8.0)}
    assert fit.most == 2
    assert weight.grad is not None
    assert weight.grad.item() == 8


def test_one_image_that_does_not_fit_is_an_error_in_one_line(toy: nn.Module, split: Any) -> None:
    with pytest.raises(TrainingError, match=r"^out of memory at 4 images per step; lower batch_size"):
        train(SmallMemory(0).hold(toy), split, TrainSettings(2, batch_size=4), CPU)


def test_another_error_is_not_taken_for_memory(toy: nn.Module, split: Any) -> None:
    def broken(module: nn.Module, args: Any) -> None:
        raise ValueError("no such layer")

    toy.register_forward_pre_hook(broken)
    with pytest.raises(ModelError, match="no such layer"):
        train(toy, split, TrainSettings(2, batch_size=4), CPU)


def test_the_size_that_fits_is_kept_and_said_once(
    toy: nn.Module, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("autoprune.modules.batch_fit.say", lambda line, **_: lines.append(line))
    memory = SmallMemory(2)
    train(memory.hold(toy), split, TrainSettings(3, batch_size=4), CPU)
    assert memory.sizes == [4, 2, 2, 2, 2, 2, 2]
    assert len(lines) == 1
    assert "out of memory at 4 images at once" in lines[0]
    assert "parts of 2" in lines[0]
    assert "--batch-size" in lines[0]
