import copy
import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from autoprune import progress
from autoprune.detectors import detector_inputs
from autoprune.errors import TrainingError
from autoprune.graph import analyze, prune
from autoprune.training import feature_sampling, least_squares

from .conftest import reconstruct

CPU = torch.device("cpu")
TWINS = {"body.0": [0, 1, 2, 3], "head.0": [0, 2, 3]}  # kept channels: one of each two twins


class SharedHead(nn.Module):
    """A body, and a head that is called for two levels; some channels are twins of others."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
        self.head = nn.Sequential(
            nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 2, 3, padding=1)
        )
        with torch.no_grad():
            for conv, twin, of in (
                (self.body[0], 4, 0),
                (self.body[0], 5, 1),
                (self.head[0], 1, 0),
                (self.head[0], 4, 3),
            ):
                conv.weight[twin] = conv.weight[of] + noise * torch.randn_like(conv.weight[of])
                conv.bias[twin] = conv.bias[of]

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        fine = self.body(torch.stack(images))
        levels = [fine, F.max_pool2d(fine, 2)]
        return [self.head(level) for level in levels]


class NamedInputs(SharedHead):
    """Its layers get their inputs by name."""

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        body, head = self.body, self.head
        fine = body[2](input=F.relu(body[0](input=torch.stack(images))))
        return [head[2](input=F.relu(head[0](input=level))) for level in (fine, F.max_pool2d(fine, 2))]


def shared_head(noise: float = 0.0) -> tuple[SharedHead, Any]:
    torch.manual_seed(0)
    model = SharedHead(noise).eval()
    return model, analyze(model, ([torch.rand(3, 16, 16)],))


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "STRENGTHS", (1e-12,))


@pytest.mark.usefixtures("weak")
def test_twins_of_kept_channels_are_compensated_for(split: Any) -> None:
    """Through two levels, with a head called for both: its outputs are again those of the dense model."""
    dense, graph = shared_head()
    assert set(TWINS) <= set(graph.prunable)
    pruned = prune(dense, graph, TWINS)
    reconstruction = reconstruct(pruned, dense, graph, TWINS, split, 8, CPU, seed=0)
    images = [torch.rand(3, 16, 16) for _ in range(3)]
    expected = dense(images)
    for before, after, wanted in zip(pruned(images), reconstruction.model(images), expected, strict=True):
        assert (before - wanted).abs().max() > 0.03
        torch.testing.assert_close(after, wanted, atol=1e-5, rtol=1e-5)
    assert set(reconstruction.errors) == {"body.2", "head.2"}
    assert all(after < 1e-8 < 1e-3 < before for before, after in reconstruction.errors.values())


def test_against_numpys_least_squares_on_all_patches(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's second layer: patches of both levels together, behind what was solved before."""
    strength = 1e-2
    monkeypatch.setattr(least_squares, "STRENGTHS", (strength,))
    monkeypatch.setattr(feature_sampling, "COUNT", 10_000)  # all
    dense, graph = shared_head(noise=0.1)
    pruned = prune(dense, graph, TWINS)
    model = reconstruct(pruned, dense, graph, TWINS, split, 10, CPU, seed=0).model
    inputs, outputs = [], []
    with torch.no_grad():
        for each, maps in ((model, inputs), (dense, outputs)):
            fine = each.body(split.images)
            maps += [each.head[:2](level) for level in (fine, F.max_pool2d(fine, 2))]
        y = np.vstack([dense.head[2](level).movedim(1, -1).flatten(0, 2) for level in outputs])
    x = np.vstack([F.unfold(level, 3, padding=1).transpose(1, 2).flatten(0, 1) for level in inputs])
    start = pruned.head[2]
    penalty = np.diag(np.sqrt(strength * len(x) * (x.astype(np.float64) ** 2).mean(0)))
    rows = np.vstack([np.c_[x, np.ones(len(x))], np.c_[penalty, np.zeros(len(penalty))]])
    w0 = start.weight.detach().flatten(1).numpy()
    residuals = np.vstack([y - x @ w0.T - start.bias.detach().numpy(), np.zeros((len(penalty), 2))])
    change, *_ = np.linalg.lstsq(rows, residuals, rcond=None)
    np.testing.assert_allclose(model.head[2].weight.detach().flatten(1), w0 + change[:-1].T, atol=1e-5)
    np.testing.assert_allclose(
        model.head[2].bias.detach(), start.bias.detach().numpy() + change[-1], atol=1e-5
    )


def test_neither_model_is_changed_and_the_result_repeats(split: Any) -> None:
    dense, graph = shared_head(noise=0.1)
    pruned = prune(dense, graph, TWINS)
    pruned.body[0].weight.requires_grad_(False)
    before = [copy.deepcopy(each.state_dict()) for each in (pruned, dense)]
    first, second, other = (
        reconstruct(pruned, dense, graph, TWINS, split, 6, CPU, seed=seed).model for seed in (0, 0, 1)
    )
    for each, state in zip((pruned, dense), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in each.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in each.modules())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head[2].weight, other.head[2].weight)
    frozen = [name for name, parameter in first.named_parameters() if not parameter.requires_grad]
    assert frozen == ["body.0.weight"]


def test_layers_that_get_their_inputs_by_name_are_reconstructed_too(split: Any) -> None:
    model, graph = shared_head(noise=0.1)
    named = NamedInputs().eval()
    named.load_state_dict(model.state_dict())
    plain, other = (
        reconstruct(prune(each, graph, TWINS), each, graph, TWINS, split, 4, CPU, seed=0).model
        for each in (model, named)
    )
    assert not torch.equal(plain.body[2].weight, prune(model, graph, TWINS).body[2].weight)
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_layers_behind_roi_pooling_stay_as_they_are(image_split: Any) -> None:
    """Dense and pruned detectors pool different boxes there; up to the proposals they see the same."""
    torch.manual_seed(0)
    dense = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64
    ).eval()
    graph = analyze(dense, detector_inputs((64, 64)))
    keep = {
        name: group.units[: max(1, len(group.units) // 2)].ravel().tolist()
        for name, group in graph.prunable.items()
    }
    pruned = prune(dense, graph, keep)
    reconstruction = reconstruct(pruned, dense, graph, keep, image_split, 3, CPU, seed=0)
    changed = {
        name
        for name, value in reconstruction.model.named_parameters()
        if not torch.equal(value, pruned.get_parameter(name))
    }
    assert any(name.startswith("rpn.") for name in changed)
    assert any(name.startswith("backbone.body.") for name in changed)
    assert not any(name.startswith("roi_heads.") for name in changed)
    depthwise = {name for name, module in pruned.named_modules() if getattr(module, "groups", 1) > 1}
    assert depthwise
    assert not {name.rpartition(".")[0] for name in changed} & depthwise


def test_one_image_is_too_few(split: Any) -> None:
    dense, graph = shared_head()
    with pytest.raises(TrainingError, match="two images at least; set reconstruct_images to 0"):
        reconstruct(prune(dense, graph, TWINS), dense, graph, TWINS, split, 1, CPU, seed=0)


def test_images_that_are_large_are_fewer(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is what the bound on the pixels allows, and two where that is none; a line says so."""
    dense, graph = shared_head()
    pruned, pixels = prune(dense, graph, TWINS), split.images[0][0].numel()
    seen: list[int] = []
    dense.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    for bound, expected in ((5 * pixels, 5), (1, 2), (100 * pixels, 8)):
        monkeypatch.setattr(sys.modules["autoprune.training.reconstruct"], "MOST_PIXELS", bound)
        out = io.StringIO()
        with progress.show(Console(file=out, width=200)):
            reconstruct(pruned, dense, graph, TWINS, split, 8, CPU, seed=0)
        assert seen.pop() == expected
        assert (f"on {expected} of 8 images" in out.getvalue()) == (expected < 8)


class Squashed(nn.Conv2d):
    """Its outputs are not linear in its weight."""

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.weight.tanh(), self.bias)


class Branches(nn.Module):
    """One branch can be reconstructed, the others can't."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.plain = nn.Conv2d(6, 4, 3, padding=1)
        self.squashed = Squashed(6, 4, 3, padding=1)
        self.reparametrized = nn.Conv2d(6, 4, 1)
        nn.utils.parametrize.register_parametrization(self.reparametrized, "weight", nn.Tanh())
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, images: list[Tensor]) -> Tensor:
        maps = self.stem(torch.stack(images)).relu()
        branches = (self.plain, self.squashed, self.reparametrized)
        return sum(norm(branch(maps)) for norm, branch in zip(self.norms, branches, strict=True))


def test_layers_whose_outputs_are_not_linear_in_their_weights_are_skipped_and_named(split: Any) -> None:
    torch.manual_seed(0)
    dense = Branches().eval()
    graph = analyze(dense, ([torch.rand(3, 16, 16)],))
    keep = {"stem": [0, 2, 3, 5]}
    pruned = prune(dense, graph, keep)
    reconstruction = reconstruct(pruned, dense, graph, keep, split, 8, CPU, seed=0)
    assert reconstruction.skipped == ("squashed", "reparametrized")
    changed = {
        name
        for name, value in reconstruction.model.state_dict().items()
        if not torch.equal(value, pruned.state_dict()[name])
    }
    assert changed == {"plain.weight", "plain.bias"}


def test_numbers_that_are_not_finite_fail_in_one_line(split: Any) -> None:
    dense, graph = shared_head()
    pruned = prune(dense, graph, TWINS)
    with torch.no_grad():
        pruned.body[0].weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the input of `body.2` in the pruned detector is not finite"):
        reconstruct(pruned, dense, graph, TWINS, split, 8, CPU, seed=0)
