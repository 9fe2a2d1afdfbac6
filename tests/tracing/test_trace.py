"""One forward pass under the op rules: precisions, wrappers, and branches that run in training mode only."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from autoprune.graph import analyze, mask, prune
from autoprune.tracing.trace import trace

IMAGES = torch.rand(2, 3, 8, 8)
X = torch.rand(2, 3, 4, 4, dtype=torch.float64)


class Auxiliary(nn.Module):
    """A classifier with an auxiliary head in the middle, as GoogLeNet has; ``how`` is code of that head."""

    def __init__(self, how=lambda x: x.flatten(1), wants_targets=False):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.middle, self.leave = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 5)
        self.side, self.side_norm, self.side_out = nn.Conv2d(8, 7, 1), nn.BatchNorm2d(7), nn.Linear(112, 5)
        self.how, self.wants_targets = how, wants_targets

    def forward(self, x, targets=None):
        if self.training and self.wants_targets and targets is None:
            raise ValueError("targets should not be none in training mode")
        x = F.relu(self.norm(self.stem(x)))
        out = self.leave(F.relu(self.middle(x)).mean((2, 3)))
        if self.training:
            return out, self.side_out(self.how(F.relu(self.side_norm(self.side(x)))))
        return out


def assert_same(model, graph, keep, *inputs):
    """Pruned and masked copies return the same, in eval and in training mode."""
    for training in (False, True):
        pruned, masked = (make(model, graph, keep).train(training) for make in (prune, mask))
        got, expected = pruned(*inputs), masked(*inputs)
        if not isinstance(expected, tuple):
            got, expected = (got,), (expected,)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() <= 1e-9 * b.abs().max()


def test_channels_that_only_training_reads_shrink_there_too(randomize, keep_sets):
    model = randomize(Auxiliary().double())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = analyze(model.train(), (X,))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(graph.prunable) == ["stem", "middle"]
    assert ("side.weight", 1) in {(name, axis) for name, axis, _ in graph.groups["stem"].members}
    # Nothing is gained where the deployed model does not go.
    assert graph.groups["side"].reason == "is made in training mode only"
    assert_same(model, graph, keep_sets(graph, 0, fraction=0.5), X)


def test_the_cost_is_that_of_eval_mode(randomize, keep_sets, counted, costed):
    model = randomize(Auxiliary().double())
    graph = analyze(model, (X,))
    keep = keep_sets(graph, 0)
    assert costed(graph, keep) == counted(prune(model, graph, keep), (X,))


def test_a_length_in_code_that_only_training_runs_is_found():
    model = Auxiliary(how=lambda x: (x + torch.zeros(1, 7, 1, 1)).flatten(1)).double()
    model.side = nn.Identity()
    model.side_norm, model.side_out = nn.BatchNorm2d(8).double(), nn.Linear(128, 5).double()
    model.how = lambda x: (x + torch.zeros(1, 8, 1, 1)).flatten(1)
    graph = analyze(model, (X,))
    assert list(graph.prunable) == ["middle"]
    assert "fixed length" in graph.groups["stem"].reason


def test_where_training_mode_wants_targets_layers_unseen_keep_what_may_feed_them(randomize, keep_sets):
    model = randomize(Auxiliary(wants_targets=True).double())
    graph = analyze(model, (X,))
    assert list(graph.prunable) == ["middle"]
    assert graph.groups["stem"].reason.startswith("may feed `side.weight`, which met no op; ")
    assert_same(model, graph, keep_sets(graph, 0, fraction=0.5), X, "targets")


def test_a_layer_that_never_runs_costs_no_channels():
    model = Auxiliary().double()
    model.idle = nn.Conv2d(8, 8, 1)
    assert list(analyze(model, (X,)).prunable) == ["stem", "middle"]


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_torchvision_classifiers_with_auxiliary_heads(name, size, randomize, keep_sets):
    torch.manual_seed(0)
    model = randomize(models.get_model(name, weights=None, init_weights=False, dropout=0.0, num_classes=5))
    if name == "googlenet":
        model.aux1.dropout.p = model.aux2.dropout.p = 0.0
    graph = analyze(model, (torch.rand(1, 3, size, size),))
    images = torch.rand(2, 3, size, size, dtype=torch.float64)
    keep = keep_sets(graph, 0)
    if name == "googlenet":
        assert_same(model.double(), graph, keep, images)
        return
    # Its head needs 299 pixels: with fewer, what may feed the head stays, and is named.
    assert "may feed `AuxLogits.conv0.conv.weight`" in graph.groups["Mixed_6b.branch7x7_1.conv"].reason
    assert {"Mixed_5b.branch1x1.conv", "Mixed_7a.branch3x3_1.conv"} & set(graph.prunable)
    images = torch.rand(2, 3, 299, 299)
    pruned, masked = (make(model, graph, keep).train() for make in (prune, mask))
    with torch.no_grad():
        got, expected = pruned(images), masked(images)
    assert (got.logits - expected.logits).abs().max() <= 1e-3 * expected.logits.abs().max()


def test_half_precision_is_traced_like_single(residual):
    model = residual()
    single = analyze(model, (IMAGES,))
    half = analyze(model.bfloat16(), (IMAGES.bfloat16(),))
    assert list(half.prunable) == list(single.prunable)
    assert half.gflops() == single.gflops()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_model_of_half_precision_is_pruned_within_its_precision(dtype, rounding, residual):
    torch.manual_seed(0)
    model, x = residual().to(dtype).eval(), IMAGES.to(dtype)
    graph = analyze(model, (x,))
    keep = {name: group.units[1::2].ravel().tolist() for name, group in graph.prunable.items()}
    with torch.no_grad():
        got, expected = prune(model, graph, keep)(x), mask(model, graph, keep)(x)
    assert got.dtype == dtype
    assert (got - expected).abs().max() <= rounding * expected.abs().max()


def test_a_model_compiled_in_place_is_pruned_as_it_is(residual):
    torch.manual_seed(0)
    model = residual().eval()
    model.compile(backend="eager")
    graph = analyze(model, (IMAGES,))
    keep = {name: group.units[1::2].ravel().tolist() for name, group in graph.prunable.items()}
    with torch.no_grad():
        torch.testing.assert_close(prune(model, graph, keep)(IMAGES), mask(model, graph, keep)(IMAGES))
    assert list(analyze(model, (IMAGES,)).prunable) == list(analyze(residual(), (IMAGES,)).prunable)


def test_a_model_made_in_inference_mode(residual):
    with torch.inference_mode():
        model = residual().eval()
        graph = analyze(model, (IMAGES,))
        keep = {name: group.units[1::2].ravel().tolist() for name, group in graph.prunable.items()}
        torch.testing.assert_close(prune(model, graph, keep)(IMAGES), mask(model, graph, keep)(IMAGES))
    assert list(graph.prunable) == list(analyze(residual(), (IMAGES,)).prunable)


def test_leaves_are_parameters_and_buffers_once_each(residual):
    model = residual()
    model.inner_again = model.inner  # under two names
    traced = trace(model, (IMAGES,))
    tensors = [leaf.tensor for leaf in traced.leaves]
    assert len({id(tensor) for tensor in tensors}) == len(tensors)
    assert {id(x) for x in (*model.parameters(), *model.buffers())} == {id(tensor) for tensor in tensors}
    assert traced.axes["stem.weight", 0] is next(x for x in traced.leaves if x.name == "stem.weight").axes[0]


class Remembering(nn.Module):
    """Counts its calls in a buffer, and keeps a tensor that no state dict has."""

    def __init__(self):
        super().__init__()
        self.conv, self.leave, self.scale = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), None
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        x = self.conv(x)
        if self.scale is None:
            self.scale = self.conv.weight.sum() + torch.linspace(0, 1, x.shape[-1])
        return self.leave(x * self.scale)


def test_no_tensor_of_the_model_remembers_the_trace(tmp_path):
    model = Remembering()
    torch.save(model.state_dict(), tmp_path / "before.pt")
    analyze(model, (IMAGES,))
    assert all(not vars(x) for x in (*model.parameters(), *model.buffers(), model.scale, IMAGES))
    torch.save(model.state_dict(), tmp_path / "after.pt")
    loaded = torch.load(tmp_path / "after.pt", weights_only=True)
    assert all(torch.equal(x, loaded[name]) for name, x in torch.load(tmp_path / "before.pt").items())
    torch.save(model, tmp_path / "whole.pt")  # pickles every attribute
