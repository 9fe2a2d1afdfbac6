import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.graph import analyze, mask
from autoprune.importance import score
from autoprune.importance.gates import gate_gradients
from autoprune.importance.gradients import joint_scores

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
        np.testing.assert_allclose(scores, apart[name], rtol=1e-4, atol=1e-5 * scores.max())
