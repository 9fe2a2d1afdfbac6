"""Steps of a training run, through `train`, against updates that are written out."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from autoprune.detectors import detector_inputs
from autoprune.errors import TrainingError
from autoprune.graph import analyze
from autoprune.training import Teacher, TrainSettings, train
from autoprune.training.batches import draw_batch, loaded_ahead
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.state import TrainingState

CPU = torch.device("cpu")


def test_the_average_is_the_weighted_sum_of_all_weights(toy: nn.Module, split: Any) -> None:
    """Against the closed form: w_T = Σ_t (1 - d_t) Π_{s>t} d_s · w_t + Π d_t · w_0."""
    steps = 6
    settings = TrainSettings(steps, batch_size=4, learning_rate=0.01, ema_decay=0.4, warmup=0)
    trail: list[dict[str, Tensor]] = []

    def remember(module: nn.Module, args: Any) -> None:
        if module.training:
            trail.append({name: p.detach().clone() for name, p in module.named_parameters()})

    toy.register_forward_pre_hook(remember)  # a deep copy keeps the hook
    averaged = train(toy, split, settings, CPU).model
    last = train(toy, split, TrainSettings(**{**vars(settings), "ema_decay": 0.0}), CPU).model
    path = [*trail[:steps], dict(last.named_parameters())]  # the decay does not change the path
    decays = [min(0.4, (1 + step) / (10 + step)) for step in range(steps)]
    assert decays[0] < 0.4 == decays[-1]
    fractions = [(1 - decays[t]) * math.prod(decays[t + 1 :]) for t in range(steps)]
    for name, value in averaged.named_parameters():
        expected = math.prod(decays) * path[0][name]
        for fraction, weights in zip(fractions, path[1:], strict=True):
            expected = expected + fraction * weights[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_step_is_adamw_on_the_clipped_gradient(toy: nn.Module, split: Any) -> None:
    """Against AdamW's update, written out: its first step is lr · sign(g) up to epsilon, and the decay."""
    toy.dropout.p = 0.0
    settings = TrainSettings(
        1, batch_size=4, learning_rate=0.01, weight_decay=0.5, warmup=0, ema_decay=0, clip_norm=1e-3
    )
    trained = train(toy, split, settings, CPU).model
    manual = copy.deepcopy(toy).train()
    indices, flips = draw_batch(len(split), 4, 0, settings.seed)
    sum(manual(*split.batch(indices, CPU, flips)).values()).backward()
    norm = torch.cat([p.grad.flatten() for p in manual.parameters()]).norm()
    assert norm > 1e-3
    for name, weight in manual.named_parameters():
        gradient = weight.grad * 1e-3 / (norm + 1e-6)
        decay = 0.5 if weight.ndim > 1 else 0.0
        expected = weight * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(trained.get_parameter(name), expected, rtol=1e-4, atol=1e-4)


def test_a_loss_that_is_not_finite_names_the_step(toy: nn.Module, split: Any) -> None:
    split.left = math.nan
    with pytest.raises(TrainingError, match=r"loss is not finite at step 1 of 4 .*box nan.*learning_rate"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


def test_a_gradient_that_is_not_finite_is_found(toy: nn.Module, split: Any) -> None:
    toy.head.register_full_backward_hook(lambda *_: (torch.full((2, 6), torch.inf),))
    with pytest.raises(TrainingError, match="gradient is not finite at step 1 of 4"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


def test_frozen_norms_stay_as_they_are(tiny_retinanet: Any, image_split: Any) -> None:
    model = tiny_retinanet(FrozenBatchNorm2d)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    trained = train(model, image_split, TrainSettings(2, batch_size=2, warmup=0), CPU).model
    buffers = dict(model.named_buffers())
    assert len(buffers) == 60  # four each of 15 norms: fewer would compare nothing
    assert all(torch.equal(trained.get_buffer(name), value) for name, value in buffers.items())
    assert not torch.equal(trained.backbone.body.conv1.weight, model.backbone.body.conv1.weight)


def test_weights_that_need_no_gradient_stay_as_they_are(toy: nn.Module, split: Any) -> None:
    toy.backbone.conv1.requires_grad_(False)
    trained = train(toy, split, TrainSettings(3, batch_size=2, learning_rate=0.1), CPU).model
    assert torch.equal(trained.backbone.conv1.weight, toy.backbone.conv1.weight)
    assert not trained.backbone.conv1.weight.requires_grad
    assert not torch.equal(trained.head.weight, toy.head.weight)
    with pytest.raises(TrainingError, match="requires_grad"):
        train(toy.requires_grad_(False), split, TrainSettings(3), CPU)


def test_bfloat16_is_used_only_where_the_cpu_has_it(
    toy: nn.Module, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {}
    for bf16, amx in [(None, True), (True, False), (True, True), (False, True)]:
        monkeypatch.setattr("autoprune.training.state.has_amx", lambda amx=amx: amx)
        losses[bf16, amx] = train(toy, split, TrainSettings(2, batch_size=2, bf16=bf16), CPU).losses
    assert losses[None, True] == losses[True, False] == losses[False, True]
    assert losses[True, True] != losses[None, True]
    assert losses[True, True] == pytest.approx(losses[None, True], rel=0.05)


def test_boxes_are_matched_with_exact_anchors_in_bfloat16(
    image_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 has no odd numbers beyond 256; what is rounded once would stay so in the detector."""
    monkeypatch.setattr("autoprune.training.state.has_amx", lambda: True)
    anchors = AnchorGenerator(((522,),), ((1.0,),))
    model = RetinaNet(nn.Conv2d(3, 4, 1), 4, anchor_generator=anchors, min_size=64, max_size=64)
    used: list[Tensor] = []
    anchors.register_forward_hook(lambda module, args, output: used.extend(output))
    trained = train(model, image_split, TrainSettings(1, batch_size=2, bf16=True), CPU).model
    assert used
    with torch.no_grad():
        trained.eval()([torch.rand(3, 64, 64)])
    exact = used.pop()
    assert exact.dtype == torch.float32
    assert all(torch.equal(each, exact) for each in used)
    assert exact[0].tolist() == [-261.0, -261.0, 261.0, 261.0]


WAITS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "equal",
}


class Waits(TorchFunctionMode):
    """Counts the calls by which the host would wait for a device, those within a detector aside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if not self.inside and (name in WAITS or (name == "__getitem__" and chooses_by_mask(args[1]))):
            self.calls.append(name)
        return func(*args, **(kwargs or {}))

    def ignore_in(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda *_: setattr(self, "inside", self.inside + 1))
        model.register_forward_hook(lambda *_: setattr(self, "inside", self.inside - 1))


class Reads(TorchDispatchMode):
    """Counts the ops that read a value or that have a shape which only the device knows."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits, self.ops = waits, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func is torch.ops.aten.index.Tensor and chooses_by_mask(args[1])
        if not self.waits.inside and (masked or func in READING):
            self.ops += 1
        return func(*args, **(kwargs or {}))


READING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}


def chooses_by_mask(index: Any) -> bool:
    indices = index if isinstance(index, list | tuple) else [index]
    return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in indices)


@pytest.mark.parametrize("augment", [False, True])
def test_a_step_waits_for_the_device_once(tiny_retinanet: Any, image_split: Any, augment: bool) -> None:
    """With a teacher and all that is distilled; torchvision's detector waits within its own code."""
    model = tiny_retinanet(nn.BatchNorm2d)
    graph = analyze(model, detector_inputs((64, 64)))
    teacher = Teacher(model, graph, {}, logits=True, head=True)
    settings = TrainSettings(4, batch_size=2, distill_logits=1.0, augment=augment)
    waits = Waits()
    reads = Reads(waits)
    waits.ignore_in(model)  # a deep copy keeps the hooks
    state = TrainingState(model, settings, CPU, teacher)
    with state.tap, loaded_ahead(image_split, settings, CPU, 0) as batches:
        for step in range(4):
            with waits, reads:
                state.advance(*next(batches))
            assert waits.calls == ["tolist"] * (step + 1)
            assert reads.ops == 0


def test_the_count_of_waits_sees_each_kind_of_them() -> None:
    """So that the test above can fail: what earlier steps did is counted."""
    waits = Waits()
    reads = Reads(waits)
    loss, mask = torch.tensor(2.0), torch.tensor([True, False])
    with waits, reads:
        assert math.isfinite(loss.item())
        assert float(loss) == 2
        bool(loss > 1)
        torch.arange(2)[mask]
        mask.nonzero()
    assert waits.calls == ["item", "__float__", "__bool__", "__getitem__", "nonzero"]
    assert reads.ops == 5


def test_no_bad_step_reaches_the_weights_their_average_or_a_checkpoint(
    toy: nn.Module, split: Any, tmp_path: Path
) -> None:
    """A gradient that overflows at the third step leaves all as it was after the second."""
    settings = TrainSettings(6, batch_size=2, learning_rate=0.01)
    file = tmp_path / "c.safetensors"
    seen: list[dict[str, Tensor]] = []

    def overflow(module: nn.Module, *_: Any) -> Any:
        return (torch.full((2, 6), torch.inf),) if len(seen) == 2 else None

    def remember(state: TrainingState) -> None:
        seen.append({name: value.clone() for name, value in state.checkpoint({}).tensors.items()})

    toy.head.register_full_backward_hook(overflow)
    with pytest.raises(TrainingError, match=r"gradient is not finite at step 3 of 6 .*loss \d"):
        train(toy, split, settings, CPU, checkpoint=file, after_step=remember, checkpoint_interval_s=0)
    identity = TrainingState(toy, settings, CPU, None).identity(toy, split)
    saved = Checkpoint.load(file, identity)
    assert saved is not None
    assert (saved.step, len(saved.losses)) == (2, 2)
    assert all(torch.equal(value, saved.tensors[name]) for name, value in seen[1].items())
    assert all(value.isfinite().all() for value in saved.tensors.values())
