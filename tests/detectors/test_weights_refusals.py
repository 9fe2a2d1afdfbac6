"""Which numbers weights may hold, what a user's factory takes, and which arguments are refused."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from autoprune import detectors
from autoprune.detectors.variances import refuse_bad_variances
from autoprune.errors import ModelError

from .conftest import SMALL, one_line


def test_a_factory_takes_weights_and_resizes_its_head(my_package):
    torch.save(nn.Conv2d(3, 12, 1).state_dict(), "w.pt")
    model, spec = detectors.load_dense("mydetector:sized", {}, None, "auto", "w.pt")
    assert (spec.num_classes, model.out_channels) == (3, 12)
    model, _ = detectors.load_dense("mydetector:sized", {}, 2, "auto", "w.pt")
    assert model.out_channels == 8
    with pytest.raises(ModelError, match="2 keys differ"):
        detectors.load_dense("mydetector:fixed", {"width": 5}, 2, "auto", "w.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight": torch.ones(4, 3, 1, 1, dtype=torch.int8)},
            "weight holds whole numbers, the model's real",
        ),
        (
            {"weight": torch.ones(4, 3, 1, 1, dtype=torch.bool)},
            "weight holds whole numbers, the model's real",
        ),
        ({"bias": torch.ones(4, dtype=torch.complex64)}, "bias holds complex numbers, the model's real"),
        ({"weight": torch.full((4, 3, 1, 1), torch.nan)}, "`weight` holds NaN or infinity; give weights of"),
        ({"bias": torch.tensor([1.0, torch.inf, 1, 1])}, "`bias` holds NaN or infinity; give weights of"),
    ],
)
def test_numbers_that_no_training_left_are_refused_by_the_name_of_the_tensor(my_package, changes, message):
    torch.save({**nn.Conv2d(3, 4, 1).state_dict(), **changes}, "w.pt")
    with pytest.raises(ModelError, match=message) as error:
        detectors.load_dense("mydetector:fixed", {}, 2, "auto", "w.pt")
    assert "w.pt" in one_line(error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_real_numbers_of_any_precision_are_taken(my_package, dtype):
    torch.save(nn.Conv2d(3, 4, 1).to(dtype).state_dict(), "w.pt")
    model, _ = detectors.load_dense("mydetector:fixed", {}, 2, "auto", "w.pt")
    assert model.weight.dtype == torch.float32


def test_the_first_of_several_tensors_with_nan_is_named(my_package):
    state = {
        name: torch.full_like(tensor, torch.nan) for name, tensor in nn.Conv2d(3, 4, 1).state_dict().items()
    }
    torch.save({"model_ema": {f"module.{name}": tensor for name, tensor in state.items()}}, "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt: `bias` holds NaN or infinity"):
        detectors.load_dense("mydetector:fixed", {}, 2, "auto", "w.pt")


def test_a_number_beyond_float32_is_refused_as_infinity(my_package):
    state = {**nn.Conv2d(3, 4, 1).state_dict(), "bias": torch.full((4,), 1e300, dtype=torch.float64)}
    torch.save(state, "w.pt")
    with pytest.raises(ModelError, match="`bias` holds NaN or infinity"):
        detectors.load_dense("mydetector:fixed", {}, 2, "auto", "w.pt")


def test_differences_show_five_keys_of_each_kind(my_package):
    state = {f"extra{n}": torch.ones(1) for n in range(7)}
    torch.save({**state, "weight": torch.ones(2)}, "w.pt")
    with pytest.raises(ModelError) as error:
        detectors.load_dense("mydetector:fixed", {}, 2, "auto", "w.pt")
    assert "9 keys differ: bias is missing; extra0 is not in the model; extra1 is" in one_line(error)
    assert (
        "extra4 is not in the model; 2 more like that; weight is [2], the model's [4, 3, 1, 1]"
        in one_line(error)
    )


def test_a_mask_of_the_model_may_hold_infinities(my_package):
    Path("masked.py").write_text(
        "import torch\nfrom torch import nn\ndef make():\n    model = nn.Conv2d(3, 4, 1)\n"
        "    model.register_buffer('mask', torch.tensor([0, -torch.inf]))\n    return model\n"
    )
    state = {**nn.Conv2d(3, 4, 1).state_dict(), "mask": torch.tensor([0, -torch.inf])}
    torch.save(state, "w.pt")
    model, _ = detectors.load_dense("masked:make", {}, 2, "auto", "w.pt")
    assert model.mask.tolist() == [0, -torch.inf]
    torch.save({**state, "mask": torch.tensor([0, torch.nan])}, "w.pt")
    with pytest.raises(ModelError, match="`mask` holds NaN"):
        detectors.load_dense("masked:make", {}, 2, "auto", "w.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 5}, r"`name`: .* \(got 5\)"),
        ({"arguments": [1]}, r"arguments is a list; give a dict"),
        ({"num_classes": 0}, r"`num_classes`: .* \(got 0\)"),
        ({"seed": -1}, r"^seed is -1; give a whole number from 0 to 4294967295$"),
        ({"seed": 0.5}, r"^seed is a float; give a whole number"),
        ({"norm": "layer"}, r"`norm`: .* \(got 'layer'\)"),
        ({"weights_key": "ema"}, r"weights_key 'ema' does nothing without weights; omit it"),
        ({"weights": {}}, r"weights is a dict; give a \.safetensors or \.pt file"),
        ({"weights": "a" * 5000}, r"no file aaa"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(arguments, message):
    with pytest.raises(ModelError, match=message) as error:
        detectors.load_dense(**{"name": "retinanet_resnet18_fpn", "arguments": SMALL, **arguments})
    one_line(error)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
@pytest.mark.parametrize(("epsilon", "variance"), [(1e-5, -0.1), (1e-5, -1e-9), (0.0, 0.0), (0.0, -1.0)])
def test_a_variance_that_no_data_has_is_refused_by_the_name_of_the_tensor(norm, epsilon, variance):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4, eps=epsilon))
    state = model.state_dict()
    refuse_bad_variances(model, state, "w.pt")
    state["1.running_var"][2] = variance
    model.load_state_dict(state)
    output = model.eval()(torch.rand(1, 3, 2, 2))
    assert variance == -1e-9 or not output.isfinite().all(), "the reference: torch's own forward pass"
    with pytest.raises(ModelError, match=r"w\.pt: `1\.running_var` holds the variance"):
        refuse_bad_variances(model, state, "w.pt")


def test_a_channel_that_never_varied_is_taken():
    model = nn.BatchNorm2d(4)
    model.running_var.zero_()
    refuse_bad_variances(model, model.state_dict(), "w.pt")
    assert model.eval()(torch.rand(1, 4, 2, 2)).isfinite().all()


def test_weights_with_such_a_variance_are_not_loaded(my_package):
    (my_package / "mydetector.py").write_text(
        "from torch import nn\n"
        "def normed():\n    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))\n"
    )
    state = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).state_dict()
    torch.save({**state, "1.running_var": -torch.ones(4)}, "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt: `1\.running_var` holds the variance -1") as error:
        detectors.load_dense("mydetector:normed", {}, 2, "auto", "w.pt")
    assert one_line(error)
