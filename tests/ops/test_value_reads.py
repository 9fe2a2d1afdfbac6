"""Values that leave torch during the trace: which channels they freeze, and that pruned equals masked."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from autoprune.graph import analyze
from autoprune.ops.labels import TraceConstraints
from autoprune.ops.value_reads import ValueReads
from autoprune.tracing.trace import trace

from ..graph.conftest import Between


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x.numpy().mean().item()


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize(
    ("how", "spelled"),
    [
        (lambda x: x * float(x.numpy().mean()), ".numpy()"),
        (lambda x: x * float(x.detach().cpu().numpy().std()), ".numpy()"),
        (lambda x: x * float(x.mean((2, 3)).flatten(1)[0].numpy().max()), ".numpy()"),
        (lambda x: x * float(np.asarray(x).mean()), "np.asarray()"),
        (lambda x: x * float(np.asarray(x[0], dtype=np.float64).mean()), "np.asarray()"),
        (lambda x: x * np.mean(x.mean((2, 3)).tolist()).item(), ".tolist()"),
        (lambda x: x * torch.tensor(np.median(x.numpy())).float(), ".numpy()"),
        (lambda x: x * torch.from_numpy(sigmoid(x.mean((2, 3)).numpy()))[..., None, None], ".numpy()"),
        (lambda x: x * float(np.from_dlpack(x).mean()), "DLPack"),
        (lambda x: x * (1 + len(set(x.untyped_storage().tolist())) / 256), ".untyped_storage()"),
        (lambda x: Scaled.apply(x), ".numpy()"),
        (lambda x: checkpoint(lambda y: y * y.numpy().mean().item(), x, use_reentrant=False), ".numpy()"),
        (lambda x: x.clone().apply_(lambda value: value + 1), ".apply_()"),
    ],
)
def test_channels_whose_values_leave_torch_are_frozen_and_no_others(how, spelled, keep_sets, compare):
    torch.manual_seed(0)
    model, inputs = Between(how), (torch.rand(2, 3, 4, 4),)
    graph = analyze(model, inputs)
    assert list(graph.prunable) == ["enter"]
    assert graph.groups["middle"].reason == f"has values that the model's code reads, by {spelled}"
    assert compare(model, graph, inputs, keep_sets(graph, 0))[1] <= 1e-5


def scaled_by_a_weight(x, layer):
    return x * float(layer.weight.detach().numpy().mean())


def test_a_weight_that_is_read_is_frozen_on_both_sides(keep_sets, compare):
    torch.manual_seed(0)
    model, inputs = Between(None), (torch.rand(2, 3, 4, 4),)
    model.how = lambda x: scaled_by_a_weight(x, model.middle)
    graph = analyze(model, inputs)
    assert not graph.prunable
    assert compare(model, graph, inputs, keep_sets(graph, 0))[1] <= 1e-5


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x * (1 + x.sum(1).numpy().mean().item()),  # a sum over channels is the same once pruned
        lambda x: x * (1 + sum(x.square().sum((1, 2, 3)).tolist())),
        lambda x: x * float(x.abs().sum()),
        lambda x: x[:, :, : int(torch.tensor([2, 3])[0])],
        lambda x: F.interpolate(x, size=np.asarray(torch.tensor(x.shape[-2:])).tolist()),
    ],
)
def test_values_that_pruning_leaves_as_they_are_freeze_nothing(how, keep_sets, compare):
    torch.manual_seed(0)
    model, inputs = Between(how), (torch.rand(2, 3, 4, 4),)
    graph = analyze(model, inputs)
    assert list(graph.prunable) == ["enter", "middle"]
    assert compare(model, graph, inputs, keep_sets(graph, 0))[1] <= 1e-5


def test_what_happens_to_detections_after_the_last_layer_freezes_nothing_more():
    def boxes_of(scores):
        positive = [index for index, score in enumerate(scores.flatten().tolist()) if score > 0]
        best = scores.numpy().max() if positive else float(scores.min())
        return scores.flatten()[positive] * float(best)

    class Detecting(Between):
        def forward(self, x):
            return boxes_of(super().forward(x))

    model = Detecting(lambda x: x)
    traced = trace(model, (torch.rand(2, 3, 4, 4),))
    assert not traced.may_branch
    assert list(analyze(model, (torch.rand(2, 3, 4, 4),)).prunable) == ["enter", "middle"]


def flipped_below(threshold):
    """Reverses the channels of whatever has a small norm."""

    def how(x):
        return x.flip(1) if float(x.square().sum()) < threshold else x

    return how


@pytest.mark.parametrize("fraction", [0.999, 0.6])
def test_a_branch_that_only_pruned_models_take_is_traced_too(fraction, keep_sets, compare):
    torch.manual_seed(0)
    model, inputs = Between(lambda x: x), (torch.rand(2, 3, 4, 4),)
    with torch.no_grad():
        norm = float(model.middle(F.relu(model.enter(*inputs))).square().sum())
    model.how = flipped_below(fraction * norm)
    graph = analyze(model, inputs)
    assert list(graph.prunable) == ["enter"]
    assert "flip" in graph.groups["middle"].reason
    assert compare(model, graph, inputs, keep_sets(graph, 0))[1] <= 1e-5


def test_code_that_refuses_the_values_of_a_masked_model_can_be_traced():
    torch.manual_seed(0)
    model, inputs = Between(lambda x: x), (torch.rand(2, 3, 4, 4),)
    with torch.no_grad():
        norm = float(model.middle(F.relu(model.enter(*inputs))).square().sum())

    def checked(x):
        if float(x.square().sum()) < 0.9 * norm:
            raise ValueError("too small")
        return x

    model.how = checked
    assert list(analyze(model, inputs).prunable) == ["enter", "middle"]


def test_a_branch_that_only_depends_on_the_image_is_no_reason_to_trace_again():
    model = Between(lambda x: x)
    model.forward = lambda x: Between.forward(model, x if float(x.mean()) > 0 else -x)
    assert not trace(model, (torch.rand(2, 3, 4, 4),)).may_branch


@pytest.mark.parametrize(
    ("read", "frozen"),
    [
        (lambda x: x.numpy(), [5, 7]),
        (lambda x: x.tolist(), [5, 7]),
        (lambda x: x.data_ptr(), [5, 7]),
        (lambda x: x.numpy(force=True), [5, 7]),
        (lambda x: x.shape, []),
        (lambda x: x * 2, []),
    ],
)
def test_a_read_freezes_every_axis_with_channels(read, frozen):
    constraints, tensor = TraceConstraints(), torch.rand(5, 7, 1)
    constraints.leaf(tensor)
    with ValueReads(constraints):
        read(tensor)
    assert sorted(len(axis) for axis, _ in constraints.frozen) == frozen
