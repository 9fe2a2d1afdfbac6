"""The masked model as the reference for pruned ones, and small models with every parameter at random."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from autoprune.graph import ChannelGraph, analyze, mask, prune
from autoprune.modules.attention import flop_counter

Keep = dict[str, list[int]]


class Between(nn.Module):
    """Three layers; ``how`` is code between the last two."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer."""
        return self.leave(self.how(self.middle(F.relu(self.enter(x)))))


class Parts(nn.Module):
    """Two convolutions concatenated, one of which a residual connection ties to a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.idle, self.leave = nn.Conv2d(5, 5, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last layer."""
        b = self.b(x)
        return self.leave(F.relu(torch.cat([self.a(x), b + self.c(b)], 1)))


def _randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws norms' scales, shifts and statistics, and biases, so that none is a silent 0 or 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=generator) * (high - low) + low
        tensor.data.copy_(values)

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dim() != 1 or not tensor.is_floating_point():
            continue
        draw(tensor, 0.5, 1.5) if name.endswith(("weight", "var")) else draw(tensor, -0.2, 0.3)
    return model.eval()


def _freeze_norms(model: nn.Module) -> nn.Module:
    """Every BatchNorm2d becomes torchvision's FrozenBatchNorm2d, as in its pretrained detectors."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, FrozenBatchNorm2d(child.num_features, child.eps))
        else:
            _freeze_norms(child)
    return model


def _keep_sets(graph: ChannelGraph, seed: int, fraction: float | None = None) -> Keep:
    """Random units of every prunable group: ``fraction`` of them, any number if None, one if 0."""
    rng = np.random.default_rng(seed)
    keep = {}
    for name, group in graph.prunable.items():
        count = len(group.units)
        kept = rng.integers(1, count + 1) if fraction is None else max(1, round(fraction * count))
        units = rng.choice(count, kept, replace=False)
        keep[name] = sorted(group.units[units].ravel().tolist())
    return keep


def _outputs(model: nn.Module, inputs: tuple[Any, ...], depth: int = 2) -> dict[str, list[torch.Tensor]]:
    """All tensors that the model and its children down to ``depth`` return, by module."""
    tensors: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if (name.count(".") + 1 if name else 0) <= depth:

            def hook(_m: nn.Module, _i: Any, out: Any, name: str = name) -> None:
                leaves = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
                tensors.setdefault(name, []).extend(leaves)

            hooks.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return tensors


def _distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """max|got - expected| / max|expected|."""
    if expected.numel() == 0 or not expected.is_floating_point():
        return float(not torch.equal(got, expected))
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _compare(
    model: nn.Module,
    graph: ChannelGraph,
    inputs: tuple[Any, ...],
    keep: Mapping[str, Any],
    depth: int = 2,
    skip: tuple[str, ...] = (),
) -> tuple[int, float]:
    """Compares the pruned model with the masked one, on every tensor of unpruned shape and on features.

    Args:
        model, graph, inputs, keep: what to prune, and what to run it on.
        depth: levels of submodules whose outputs are compared.
        skip: modules whose results are sorted, where ties may be ordered either way.

    Returns:
        How many tensors were compared, and the largest relative difference.
    """
    pruned, masked = prune(model, graph, keep), mask(model, graph, keep)
    return _largest_distance(
        _outputs(pruned, inputs, depth), _outputs(masked, inputs, depth), graph, keep, skip
    )


def _largest_distance(
    got: dict[str, list[torch.Tensor]],
    expected: dict[str, list[torch.Tensor]],
    graph: ChannelGraph,
    keep: Mapping[str, Any],
    skip: tuple[str, ...] = (),
) -> tuple[int, float]:
    """As `_compare`, for results of `_outputs` of a pruned and of a masked model."""
    worst, count = 0.0, 0
    for name, tensors in expected.items():
        if name in skip:
            continue
        assert len(got[name]) == len(tensors), name
        for a, b in zip(got[name], tensors, strict=True):
            if a.shape == b.shape:
                worst, count = max(worst, _distance(a, b)), count + 1
    for name, features in graph.features.items():
        maps = [(a, b) for a, b in zip(got[name], expected[name], strict=True) if b.dim() == 4]
        for (group, index), (a, b) in zip(features, maps, strict=False):
            if group is not None and (index < 0).any():
                continue  # channels of several groups: a feature names only one
            if group in keep:
                b = b[:, torch.from_numpy(np.isin(index, list(keep[group])))]
            worst, count = max(worst, _distance(a, b)), count + 1
    return count, worst


class _Written(TorchDispatchMode):
    """Bytes of all results of ops that are new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


def _counted(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int, int]:
    """Multiply-adds by torch's own counter, parameters, and bytes that ops write."""
    with torch.no_grad(), flop_counter() as counter, _Written() as written:
        model(*inputs)
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters()), written.total


def _costed(graph: ChannelGraph, keep: Mapping[str, Any]) -> tuple[int, int, int]:
    """What the cost model says of the same, for the widths of ``keep``."""
    widths = graph.vector({name: len(kept) for name, kept in keep.items()})
    cost = graph.cost
    return int(cost.flops(widths)), int(cost.params(widths)), int(cost.activations(widths))


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 5)
        self.unused = nn.Conv2d(7, 7, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(self.inner(x).relu_())
        return self.head(x.flatten(1))


class _Between(nn.Module):
    """``function`` between two convolutions: it gets the 12 channels that the first one makes."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], outputs: int) -> None:
        super().__init__()
        self.enter, self.function, self.leave = nn.Conv2d(3, 12, 1), function, nn.Conv2d(outputs, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.function(self.enter(x)))


def _check_op(
    function: Callable[[torch.Tensor], torch.Tensor],
    outputs: int = 12,
    reason: str | None = None,
    fractions: tuple[float, ...] = (0.5, 0),
) -> ChannelGraph:
    """Compares the ops in ``function`` with those of the masked model, and their cost with torch's count.

    Args:
        function: maps [2, 12, 6, 6] to [2, outputs, h, w], or a module that does.
        outputs: channels of its result.
        reason: part of the reason why the channels that go in can't be removed; None: they can.
        fractions: kept fractions of each group; 0 keeps one unit.

    Returns:
        The graph of the network; its groups `enter` and `leave` are named after the convolutions.
    """
    torch.manual_seed(0)
    model = _randomize(_Between(function, outputs).double())
    inputs = (torch.rand(2, 3, 6, 6, dtype=torch.float64),)
    graph = analyze(model, inputs)
    group = graph.groups["enter"]
    assert group.prunable == (reason is None), group.reason
    assert reason is None or reason in (group.reason or "")
    for fraction in fractions:
        keep = _keep_sets(graph, 1, fraction)
        count, worst = _compare(model, graph, inputs, keep, depth=1)
        assert count >= 1
        assert worst <= 1e-12
        assert _costed(graph, keep)[:2] == _counted(prune(model, graph, keep), inputs)[:2]
    return graph


@pytest.fixture(scope="session")
def residual() -> type[nn.Module]:
    return _Residual


@pytest.fixture(scope="session")
def check_op() -> Callable[..., ChannelGraph]:
    return _check_op


@pytest.fixture(scope="session")
def randomize() -> Callable[..., nn.Module]:
    return _randomize


@pytest.fixture(scope="session")
def freeze_norms() -> Callable[..., nn.Module]:
    return _freeze_norms


@pytest.fixture(scope="session")
def keep_sets() -> Callable[..., Keep]:
    return _keep_sets


@pytest.fixture(scope="session")
def compare() -> Callable[..., tuple[int, float]]:
    return _compare


@pytest.fixture(scope="session")
def outputs() -> Callable[..., dict[str, list[torch.Tensor]]]:
    return _outputs


@pytest.fixture(scope="session")
def largest_distance() -> Callable[..., tuple[int, float]]:
    return _largest_distance


@pytest.fixture(scope="session")
def counted() -> Callable[..., tuple[int, int, int]]:
    return _counted


@pytest.fixture(scope="session")
def costed() -> Callable[..., tuple[int, int, int]]:
    return _costed


@pytest.fixture(scope="module")
def parts() -> ChannelGraph:
    """The graph of `Parts`."""
    return analyze(Parts(), (torch.rand(2, 3, 5, 5),))
