import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.graph import analyze, mask
from autoprune.importance import score
from autoprune.importance.gradients import gate_gradients, joint_scores

GROUP = "first"  # the toy's only prunable group


def toy_graph(model: nn.Module):
    return analyze(model, ([torch.rand(3, 8, 8)],))


def loss_of(model: nn.Module, images, targets) -> float:
    """The loss with the norms' statistics untouched."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return float(
            model.double()([x.double() for x in images], [{"map": t["map"].double()} for t in targets])[
                "loss"
            ]
        )


@pytest.mark.parametrize("frozen", [False, True])
def test_taylor_is_the_change_of_a_linear_loss_when_the_channel_is_zeroed(
    toy, toy_batches, frozen: bool
) -> None:
    model, batches = toy(frozen=frozen), toy_batches()
    graph = toy_graph(model)
    scores = score("taylor", model, graph, batches)[GROUP]
    for channel in range(6):
        masked = mask(model, graph, {GROUP: [c for c in range(6) if c != channel]})
        changes = [
            abs(loss_of(masked, [x], [t]) - loss_of(model, [x], [t]))
            for images, targets in batches()
            for x, t in zip(images, targets, strict=True)
        ]
        assert scores[channel] == pytest.approx(np.mean(changes), rel=1e-4)


def test_a_small_gate_gives_the_same_by_finite_differences(toy, toy_batches) -> None:
    """Not linear: ReLU and a squared loss. The channel is scaled by 1 - e where it is read."""
    model, batches = toy(nn.ReLU(), power=2), toy_batches()
    graph, e = toy_graph(model), 1e-6
    taylor, fisher = (score(name, model, graph, batches)[GROUP] for name in ("taylor", "fisher"))
    for channel in range(6):
        slopes = []
        for images, targets in batches():
            for x, t in zip(images, targets, strict=True):
                sides = []
                for factor in (1 - e, 1 + e):
                    scaled = copy.deepcopy(model).double()
                    with torch.no_grad():
                        scaled.last.weight[:, channel] *= factor
                    sides.append(loss_of(scaled, [x], [t]))
                slopes.append((sides[1] - sides[0]) / (2 * e))
        assert taylor[channel] == pytest.approx(np.mean(np.abs(slopes)), rel=1e-3)
        assert fisher[channel] == pytest.approx(np.mean(np.square(slopes)), rel=1e-3)


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


def test_joint_scores_sum_up_what_channels_are_worth_together() -> None:
    """Against the definition: the minorant at k is the lowest chord over k between any two points."""
    random = np.random.default_rng(0)
    for units in (1, 2, 7, 12):
        gates = random.normal(0.3, 1, (9, units))
        order = np.argsort(np.abs(gates).mean(0))
        curve = [0.0]
        for k in range(1, units + 1):
            curve.append(max(curve[-1], float((gates[:, order[:k]].sum(1) ** 2).mean())))
        scores = joint_scores(gates)
        assert np.argsort(scores).tolist() == order.tolist()
        for k in range(units + 1):
            lowest = min(
                curve[i] if i == j else (curve[i] * (j - k) + curve[j] * (k - i)) / (j - i)
                for i in range(k + 1)
                for j in range(k, units + 1)
            )
            assert scores[order[:k]].sum() == pytest.approx(lowest, rel=1e-4, abs=1e-5 * curve[-1])


def test_joint_scores_take_units_whole(detector, detector_batches) -> None:
    """GroupNorm couples channels in pairs: a pair has one gate, and both channels the same score."""
    model = detector("group")
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    importance = score("joint", model, graph, detector_batches)
    rows = list(gate_gradients(model, graph, detector_batches, 0))
    paired = [group for group in graph.prunable.values() if group.unit == 2]
    assert paired
    for group in paired:
        gates = np.stack([row[group.name] for row in rows]).reshape(len(rows), -1, 2)
        assert (group.units == np.arange(group.width).reshape(-1, 2)).all()
        np.testing.assert_allclose(
            importance[group.name].reshape(-1, 2).sum(1), joint_scores(gates.sum(2)), rtol=1e-4
        )


def test_an_equivalent_model_gets_the_same_scores(toy, toy_batches) -> None:
    """Channels twice as large that are read half as strongly: nothing a loss can see."""
    model = toy(nn.ReLU(), power=2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (other.norm.weight, other.norm.bias, other.second.weight, other.second.bias):
            tensor *= 2
        other.last.weight /= 2
    for name in ("taylor", "fisher"):
        ours, theirs = (score(name, m, toy_graph(m), toy_batches())[GROUP] for m in (model, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_scores_scale_with_the_loss(toy, toy_batches) -> None:
    model, tripled = toy(), toy()
    with torch.no_grad():
        tripled.last.weight *= 3
        tripled.last.bias *= 3
    for name, factor in (("taylor", 3), ("fisher", 9)):
        ours, theirs = (score(name, m, toy_graph(m), toy_batches())[GROUP] for m in (model, tripled))
        np.testing.assert_allclose(theirs, factor * ours, rtol=1e-4)


def test_the_batch_size_does_not_matter(detector, detector_batches) -> None:
    model = detector("batch")
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    singles = [
        ([x], [t]) for images, targets in detector_batches() for x, t in zip(images, targets, strict=True)
    ]
    together, apart = (score("fisher", model, graph, b) for b in (detector_batches, lambda: singles))
    for name, scores in together.items():
        assert scores.tolist() == apart[name].tolist()
