"""Global response norms as three libraries write them: what is made of them, against the masked model."""

import copy
import pickle

import pytest
import torch
from torch import nn

from autoprune.graph import analyze, mask, prune
from autoprune.modules.response_norm import ResponseForm, ResponseNorm, response_form, responses_visible


class Literal(nn.Module):
    """Channels last, and a number in the code."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x):
        lengths = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
        relative = lengths / (lengths.mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * (x * relative) + self.bias + x


class Either(nn.Module):
    """Channels first or last, an attribute, the bias before the weight."""

    def __init__(self, channels, eps=1e-3, first=True):
        super().__init__()
        self.eps, self.first = eps, first
        self.beta, self.gamma = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        space, axis, shape = ((2, 3), 1, (1, -1, 1, 1)) if self.first else ((1, 2), -1, (1, 1, 1, -1))
        lengths = x.norm(p=2, dim=space, keepdim=True)
        x_n = lengths / (lengths.mean(dim=axis, keepdim=True) + self.eps)
        return x + torch.addcmul(self.beta.view(shape), self.gamma.view(shape), x * x_n)


class Block(nn.Module):
    """The block of ConvNeXt V2 around a norm."""

    def __init__(self, norm, first):
        super().__init__()
        self.stem, self.enter, self.norm = nn.Conv2d(3, 6, 1), nn.Linear(6, 12), norm
        self.leave, self.head, self.first = nn.Linear(12, 6), nn.Conv2d(6, 2, 1), first

    def forward(self, x):
        x = self.stem(x)
        inner = nn.functional.gelu(self.enter(x.permute(0, 2, 3, 1)))
        inner = self.norm(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.first else self.norm(inner)
        return self.head(x + self.leave(inner).permute(0, 3, 1, 2))


FORMS = {
    "literal": (lambda: Literal(12), False, ResponseForm("weight", "bias", -1, 1e-6, 12)),
    "first": (lambda: Either(12), True, ResponseForm("gamma", "beta", 1, 1e-3, 12)),
    "last": (lambda: Either(12, 0.03, False), False, ResponseForm("gamma", "beta", -1, 0.03, 12)),
    "nothing added": (lambda: Either(12, 0.0), True, ResponseForm("gamma", "beta", 1, 0.0, 12)),
}


def randomized(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.double().eval()


@pytest.mark.parametrize("name", FORMS)
def test_what_a_norm_computes_is_known_from_its_code(name):
    make, _, expected = FORMS[name]
    module = make()
    before = copy.deepcopy(module.state_dict())
    form = response_form(module)
    assert form._replace(eps=0) == expected._replace(eps=0)
    assert form.eps == pytest.approx(expected.eps, rel=1e-8, abs=0)
    assert all(torch.equal(x, before[key]) for key, x in module.state_dict().items())


@pytest.mark.parametrize("scale", [1, 1e-4])  # at the smaller one what is added to the mean counts
@pytest.mark.parametrize("name", FORMS)
def test_a_pruned_norm_computes_what_the_masked_one_does(name, scale):
    torch.manual_seed(0)
    make, first, _ = FORMS[name]
    model = randomized(Block(make(), first))
    with torch.no_grad():
        model.stem.weight *= scale
        model.stem.bias *= scale
        model.enter.bias *= scale
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    graph = analyze(model, (images,))
    assert graph.groups["enter"].prunable
    assert graph.groups["stem"].prunable
    for kept in ([0, 3, 4, 7, 11], [5]):
        keep = {"enter": kept, "stem": [1, 2, 5]}
        pruned, masked = prune(model, graph, keep), mask(model, graph, keep)
        assert type(masked.norm) is type(model.norm)
        assert pruned.norm.state_dict().keys() == model.norm.state_dict().keys()
        torch.testing.assert_close(pruned(images), masked(images), rtol=1e-12, atol=0)


def test_a_pruned_norm_is_copied_pickled_and_pruned_again():
    torch.manual_seed(0)
    model = randomized(Block(Literal(12), False))
    images = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    graph = analyze(model, (images,))
    pruned = prune(model, graph, {"enter": [0, 2, 4, 6, 8]})
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other(images), pruned(images))
    again = prune(pruned, analyze(pruned, (images,)), {"enter": [1, 3]})
    expected = mask(model, graph, {"enter": [2, 6]})(images)
    torch.testing.assert_close(again(images), expected, rtol=1e-12, atol=0)


def test_an_emptied_norm_leaves_the_skip_connection():
    model = randomized(Block(Literal(12), False))
    images = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    graph = analyze(model, (images,))
    assert graph.groups["enter"].can_empty
    x = model.stem(images)
    expected = model.head(x + model.leave.bias.view(1, -1, 1, 1))
    pruned = prune(model, graph, {"enter": []})
    torch.testing.assert_close(pruned(images), expected, rtol=1e-12, atol=0)


class OverSpace(Literal):
    """Divides by the mean over space."""

    def forward(self, x):
        lengths = x.norm(dim=(1, 2), keepdim=True)
        return self.weight * (x * lengths / (x.mean((1, 2), keepdim=True) + 1e-6)) + self.bias + x


class WithoutSkip(Literal):
    """Does not add its input."""

    def forward(self, x):
        return super().forward(x) - x


@pytest.mark.parametrize(
    "module",
    [OverSpace(4), WithoutSkip(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.Linear(1, 1),
     nn.Linear(4, 4), nn.PReLU(4), nn.Identity()],
)  # fmt: skip
def test_other_layers_are_none(module):
    assert response_form(module) is None
    kind = type(module)
    with responses_visible(module):
        assert type(module) is kind


def test_inside_the_block_only_its_class_changes():
    module = randomized(Literal(4))
    x, attributes = torch.rand(2, 3, 5, 4, dtype=torch.float64), set(vars(module))
    expected = module(x)
    with responses_visible(module):
        assert isinstance(module, ResponseNorm)
        torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=0)
    assert type(module) is Literal
    assert set(vars(module)) == attributes


def test_a_mean_that_is_no_response_norm_stays_frozen():
    class Mean(Block):
        def forward(self, x):
            x = self.enter(self.stem(x).permute(0, 2, 3, 1)).relu()
            return self.leave(x / (1 + x.mean(-1, keepdim=True)))

    graph = analyze(randomized(Mean(nn.Identity(), False)), (torch.rand(1, 3, 4, 4, dtype=torch.float64),))
    assert not graph.groups["enter"].prunable
    assert "mean" in graph.groups["enter"].reason
