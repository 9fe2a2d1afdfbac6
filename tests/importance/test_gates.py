"""Gate gradients against gates in the forward pass, and those of a batch against one image at a time."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.graph import ChannelGraph, analyze
from autoprune.importance import score
from autoprune.importance.gates import gate_gradients
from autoprune.modules.run_modes import loss_mode_copy


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("half", [False, True])
def test_gates_in_the_forward_pass_give_the_same(detector, detector_batches, norm: str, half: bool) -> None:
    """The definition itself: activations times a gate of ones, at every module that reads a group.

    With half of the gates at 0, their gradients are those of a pruned detector that could open them.
    """
    model = detector(norm)
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    keep = {name: range(0, group.width, 2) for name, group in graph.prunable.items()} if half else None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = list(gate_gradients(model, graph, detector_batches, 0, keep))
    gates_of = {name: np.stack([image[name] for image in images]) for name in graph.prunable}
    scores_of = {
        "taylor": {name: np.abs(gates).mean(0) for name, gates in gates_of.items()},
        "fisher": {name: (gates**2).mean(0) for name, gates in gates_of.items()},
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if not half:
        for criterion, scores in scores_of.items():
            for name, expected in score(criterion, model, graph, detector_batches).items():
                np.testing.assert_allclose(scores[name], expected)
    assert len(graph.prunable) >= 10

    reference = copy.deepcopy(model).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    modules = dict(reference.named_modules())
    gates = {}
    for name, group in graph.prunable.items():
        gates[name] = torch.ones(group.width)
        gates[name][1::2] = 0.0 if half else 1.0
        gates[name].requires_grad_()
    for name, group in graph.prunable.items():
        for (tensor, _, index), role in zip(group.members, group.roles, strict=True):
            if role == "consumer":
                assert index.tolist() == list(range(group.width))
                modules[tensor.rpartition(".")[0]].register_forward_pre_hook(
                    lambda _, x, gate=gates[name]: (x[0] * gate[:, None, None],)
                )
    rows = []
    for images, targets in detector_batches():
        for image, target in zip(images, targets, strict=True):
            loss = sum(reference([image], [target]).values())
            grads = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
            rows.append([torch.zeros(1) if g is None else g for g in grads])
    for place, name in enumerate(gates):
        gate = torch.stack([row[place].expand(len(gates[name])) for row in rows]).double().numpy()
        largest = np.abs(gate).max()
        np.testing.assert_allclose(
            scores_of["taylor"][name], np.abs(gate).mean(0), rtol=1e-3, atol=1e-5 * largest
        )
        np.testing.assert_allclose(
            scores_of["fisher"][name], (gate**2).mean(0), rtol=2e-3, atol=1e-5 * largest**2
        )


def by_weights(model: nn.Module, graph: ChannelGraph, image, target) -> dict[str, np.ndarray]:
    """The definition for one image alone: sum over all that reads a channel of w * dL/dw."""
    alone = loss_mode_copy(model)
    parameters = dict(alone.named_parameters())
    alone.zero_grad()
    torch.manual_seed(0)
    sum(alone([image], [target]).values()).backward()
    gates = {name: np.zeros(group.width) for name, group in graph.prunable.items()}
    for name, group in graph.prunable.items():
        for (tensor, axis, index), role in zip(group.members, group.roles, strict=True):
            if role == "consumer":
                weight = parameters[tensor]
                product = (weight * weight.grad).detach().double().movedim(axis, 0).flatten(1).sum(1).numpy()
                np.add.at(gates[name], index[index >= 0], product[index >= 0])
    return gates


def assert_same(gates: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert gates.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(gates[name], values, rtol=1e-4, atol=1e-5 * np.abs(values).max() + 1e-12)


def count_calls(model: nn.Module) -> list[int]:
    """Notes with how many images the model and its copies are called."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


def test_images_of_a_batch_are_taken_together_where_none_depends_on_its_neighbors(
    detector, detector_batches
) -> None:
    """One image is without boxes, one has another size: a batch would pad it, so it is taken alone."""
    model = detector("frozen")
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    (first, first_targets), (last, last_targets) = detector_batches()
    images = [*first, *last, torch.rand(3, 64, 96)]
    targets = [*first_targets, *last_targets, first_targets[0]]
    calls = count_calls(model)
    rows = list(gate_gradients(model, graph, lambda: [(images, targets)], 0))
    assert calls[-2:] == [4, 1]
    for row, image, target in zip(rows, images, targets, strict=True):
        assert_same(row, by_weights(model, graph, image, target))


class Coupled(nn.Module):
    """A detector whose loss is divided by all boxes of the batch, as that of FCOS or a DETR is."""

    def __init__(self, toy: nn.Module) -> None:
        super().__init__()
        self.toy = toy

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None):
        if targets is None:
            return self.toy(images)
        maps = self.toy.last(self.toy.act(self.toy.norm(self.toy.first(torch.stack(images)))))
        wanted = torch.stack([target["map"] for target in targets])
        boxes = sum(len(target["boxes"]) for target in targets)
        return {"loss": ((maps - wanted) ** 2).sum() / max(1, boxes)}


class Total(Coupled):
    """One whose loss is the sum over the images, not their mean."""

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None):
        if targets is None:
            return self.toy(images)
        parts = [super(Total, self).forward([x], [t])["loss"] for x, t in zip(images, targets, strict=True)]
        return {"loss": torch.stack(parts).sum()}


class RefusesEmpty(Coupled):
    """One that takes no image without boxes."""

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None):
        if targets is not None and not all(len(target["boxes"]) for target in targets):
            raise ValueError("an image has no boxes")
        return super().forward(images, targets)


def with_boxes(toy_batches, most: int) -> Callable:
    """Batches of two; the n-th image has 1 + n % most boxes."""
    several = [(images, [dict(target) for target in targets]) for images, targets in toy_batches()()]
    for number, target in enumerate(target for _, targets in several for target in targets):
        target["boxes"] = torch.zeros(1 + number % most, 4)
    return lambda: several


@pytest.mark.parametrize("kind", [Coupled, Total, RefusesEmpty])
@pytest.mark.parametrize("most", [1, 3])
def test_images_whose_losses_depend_on_each_other_are_taken_alone(
    toy, toy_batches, kind: type[Coupled], most: int
) -> None:
    """Also where all images have as many boxes, which would hide it."""
    model = kind(toy(nn.ReLU()))
    graph = analyze(model, ([torch.rand(3, 8, 8)],))
    calls, batches = count_calls(model), with_boxes(toy_batches, most)
    rows = list(gate_gradients(model, graph, batches, 0))
    pairs = [pair for images, targets in batches() for pair in zip(images, targets, strict=True)]
    assert calls[-len(pairs) + 1 :] == [1] * (len(pairs) - 1)
    for row, (image, target) in zip(rows, pairs, strict=True):
        assert_same(row, by_weights(model, graph, image, target))


class Functional(Coupled):
    """One that reads a group without calling the layer, so that no gate at its input would be seen."""

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None):
        last = self.toy.last
        read = self.toy.act(self.toy.norm(self.toy.first(torch.stack(images))))
        maps = nn.functional.conv2d(read, last.weight, last.bias, padding=1)
        if targets is None:
            return maps
        wanted = torch.stack([target["map"] for target in targets])
        return {"loss": ((maps - wanted) ** 2).mean()}


class ByName(nn.Module):
    """A layer that the code around it calls with ``input=``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(input=x)


def called_by_name(toy: nn.Module) -> nn.Module:
    toy.last = ByName(toy.last)
    return Coupled(toy)


class Tokens(nn.Module):
    """Linear layers on [tokens, images, channels], as some transformers have them, and a grouped reader."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.last = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 12), nn.Linear(12, 2)

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None):
        tokens = self.embed(torch.stack(images)).flatten(2).permute(2, 0, 1)
        maps = self.last(self.hidden(tokens).relu())
        if targets is None:
            return maps
        wanted = torch.stack([target["map"].flatten(1)[:, :4].T for target in targets], dim=1)
        return {"loss": ((maps - wanted) ** 2).mean()}


@pytest.mark.parametrize("make", [Functional, called_by_name, lambda toy: Tokens()])
def test_what_reads_in_other_ways_is_right_too(toy, toy_batches, make) -> None:
    torch.manual_seed(3)
    model = make(toy(nn.ReLU()))
    graph = analyze(model, ([torch.rand(3, 8, 8)],))
    assert graph.prunable
    batches = with_boxes(toy_batches, 2)
    rows = list(gate_gradients(model, graph, batches, 0))
    pairs = [pair for images, targets in batches() for pair in zip(images, targets, strict=True)]
    for row, (image, target) in zip(rows, pairs, strict=True):
        assert_same(row, by_weights(model, graph, image, target))
