import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.training import least_squares
from autoprune.training.feature_sampling import SampledPositions
from autoprune.training.least_squares import extent_of, fit, layers_without_groups, patches, solvable

LAST = 20  # samples of 100 that are held out


def samples(inputs: int = 7, outputs: int = 3, noise: float = 0.3) -> tuple[Tensor, ...]:
    """Inputs and targets of a linear layer, its start weights and bias, and which samples are held out."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(100, inputs) * torch.linspace(0.1, 3, inputs) + 1
    weights, bias = draw(outputs, inputs), draw(outputs)
    y = x @ (weights + 0.5 * draw(outputs, inputs)).T + bias + 2 + noise * draw(100, outputs)
    return x, y, weights, bias, torch.arange(100) >= 100 - LAST


@pytest.mark.parametrize("inputs", [7, 150])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_fit_is_that_of_numpys_least_squares(
    inputs: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a penalty as further rows: √(λ N) s_d ΔW_d should be 0. More inputs than samples, too."""
    strength = 0.05
    monkeypatch.setattr(least_squares, "STRENGTHS", (strength,))
    x, y, weights, bias, held_out = samples(inputs)
    fitted = fit(x, y, weights, bias if with_bias else None, held_out)
    scale = x.square().mean(0).sqrt()
    rows = np.vstack([x.numpy(), np.diag(np.sqrt(strength * len(x)) * scale.numpy())])
    ones = np.r_[np.ones(len(x)), np.zeros(inputs)][:, None]
    residuals = (y - x @ weights.T - with_bias * bias).numpy()
    targets = np.vstack([residuals, np.zeros((inputs, y.shape[1]))])
    change, *_ = np.linalg.lstsq(np.hstack([rows, ones]) if with_bias else rows, targets, rcond=None)
    np.testing.assert_allclose(fitted.weights, weights.numpy() + change[:inputs].T, atol=1e-8)
    if with_bias:
        assert fitted.bias is not None
        np.testing.assert_allclose(fitted.bias, bias.numpy() + change[-1], atol=1e-8)
    else:
        assert fitted.bias is None


def test_the_strength_is_the_one_with_the_least_error_on_samples_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y, weights, bias, held_out = samples(inputs=60, noise=3)
    alone = {}
    for strength in least_squares.STRENGTHS:
        with monkeypatch.context() as patch:
            patch.setattr(least_squares, "STRENGTHS", (strength,))
            alone[strength] = fit(x, y, weights, bias, held_out)
    best = min(alone.values(), key=lambda each: each.after)
    fitted = fit(x, y, weights, bias, held_out)
    assert len({each.after for each in alone.values()}) == len(alone)
    assert torch.equal(fitted.weights, best.weights)
    assert fitted.after == best.after < fitted.before


def test_errors_are_fractions_of_the_variance() -> None:
    x, y, weights, bias, held_out = samples()
    fitted = fit(x, y, weights, bias, held_out)
    residuals = (y - x @ weights.T - bias)[held_out].numpy()
    variance = y[held_out].numpy().var(axis=0).sum() * LAST
    assert fitted.before == pytest.approx((residuals**2).sum() / variance)


def test_weights_that_no_fit_improves_on_stay_as_they_are() -> None:
    x, _, weights, bias, held_out = samples()
    noise = torch.randn(100, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = x @ weights.T + bias + torch.where(held_out[:, None], 0.0, noise)  # only the others are off
    fitted = fit(x, y, weights, bias, held_out)
    assert torch.equal(fitted.weights, weights)
    assert fitted.bias is not None
    assert torch.equal(fitted.bias, bias)
    assert fitted.after == fitted.before == pytest.approx(0, abs=1e-20)


def test_an_input_that_is_always_zero_keeps_its_weights() -> None:
    x, y, weights, bias, held_out = samples()
    x[:, 2] = 0
    fitted = fit(x, y, weights, bias, held_out)
    assert torch.equal(fitted.weights[:, 2], weights[:, 2])
    assert not torch.equal(fitted.weights[:, 3], weights[:, 3])


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1)},
        {"kernel_size": 3, "dilation": (1, 2), "padding": (2, 3), "stride": 2},
        {"kernel_size": 1},
    ],
)
def test_patches_are_those_of_unfold(arguments: dict[str, int]) -> None:
    layer = nn.Conv2d(4, 5, bias=False, **arguments)
    maps = torch.randn(3, 4, 9, 11)
    out = layer(maps)
    height, width = out.shape[2:]
    positions = SampledPositions(*torch.from_numpy(np.indices((3, height, width)).reshape(3, -1)))
    options = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")}
    expected = F.unfold(maps, **options).transpose(1, 2).flatten(0, 1)
    read = patches(layer, maps, positions)
    assert torch.equal(read, expected)
    torch.testing.assert_close(read @ layer.weight.flatten(1).T, out.movedim(1, -1).flatten(0, 2))


def test_patches_of_a_linear_layer_are_its_tokens() -> None:
    tokens = torch.randn(3, 5, 4)
    positions = SampledPositions(torch.tensor([0, 2]), torch.tensor([4, 1]), torch.tensor([0, 0]))
    layer = nn.Linear(4, 2)
    assert torch.equal(patches(layer, tokens, positions), tokens[[0, 2], [4, 1]])


def test_layers_that_can_be_solved_are_linear_and_share_no_weight() -> None:
    class Doubled(nn.Linear):
        def forward(self, tensor: Tensor) -> Tensor:
            return 2 * super().forward(tensor)

    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 4, 3),
            "grouped": nn.Conv2d(2, 4, 3, groups=2),
            "reflected": nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
            "linear": nn.Linear(2, 4),
            "doubled": Doubled(2, 4),
            "tied": nn.Linear(2, 4),
            "norm": nn.BatchNorm2d(4),
        }
    )
    model["tied"].weight = model["linear"].weight
    layers = layers_without_groups(model)
    assert list(layers) == ["conv", "reflected", "linear", "doubled", "tied"]
    assert list(solvable(layers)) == ["conv"]
    del layers["tied"]
    assert list(solvable(layers)) == ["conv", "linear"]
    assert extent_of(model["conv"], torch.rand(5, 2, 7, 9)) == (5, 7, 9)
    assert extent_of(model["linear"], torch.rand(5, 6, 2)) == (5, 6)
