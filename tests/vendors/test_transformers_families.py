from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from torch import nn

from autoprune.detectors.factories import build, is_frozen_norm, with_norm
from autoprune.errors import ModelError
from autoprune.fields import ModelSpec
from autoprune.vendors import transformers_families
from autoprune.vendors.transformers_families import (
    FAMILIES,
    configuration,
    grid_of,
    names_of,
    plain_values,
    quiet,
)

from .transformers_models import RT_RESNET, config_of, vendor_model


@pytest.mark.parametrize("family", list(FAMILIES))
def test_plain_values_give_the_same_architecture_again(family: str) -> None:
    made = configuration(config_of(family), "config.json")
    again = configuration(plain_values(made), "policy.yaml")
    assert plain_values(again) == plain_values(made)
    kind = getattr(transformers, FAMILIES[family].model)
    with quiet():
        shapes = [{n: t.shape for n, t in kind(config).state_dict().items()} for config in (made, again)]
    assert shapes[0] == shapes[1]


def test_names_are_those_that_someone_gave() -> None:
    named = configuration(config_of("rt_detr"), "x")
    assert names_of(named) == {1: "RBC", 2: "WBC", 3: "Platelets"}
    unnamed = configuration({"model_type": "rt_detr", "num_labels": 4}, "x")
    assert names_of(unnamed) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "`model_type` is 'bert', and must be one of detr, "),
        ({}, "`model_type` is None"),
        (
            {"model_type": "detr", "architectures": ["DetrForSegmentation"]},
            "for a DetrForSegmentation, which is of another task; give a DetrForObjectDetection",
        ),
        ({"model_type": "rt_detr", "d_model": "wide"}, "is no valid RTDetrConfig: .*d_model"),
        ({"model_type": "rt_detr", "backbone_config": 3}, "`backbone_config` must be a mapping, not 3"),
        ({"model_type": "rt_detr", "backbone": "someone/net"}, "names its backbone 'someone/net'"),
        (
            {"model_type": "detr", "use_timm_backbone": False, "backbone": "someone/net"},
            "nothing is fetched here",
        ),
        (
            {"model_type": "detr", "backbone": "hf-hub:someone/net", "use_timm_backbone": True},
            "nothing is fetched here",
        ),
        (
            {
                "model_type": "rt_detr",
                "backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:someone/net"},
            },
            "the backbone 'hf-hub:someone/net' is no model of timm's own",
        ),
    ],
)
def test_configs_that_can_not_be_built_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        configuration(config, "config.json")
    assert "\n" not in str(caught.value)


def test_an_installed_version_without_a_family_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = transformers_families.Family("MadeUpForObjectDetection", "X", lambda a, b: (a, b, b), ())
    monkeypatch.setitem(transformers_families.FAMILIES, "made_up", missing)
    version = transformers.__version__
    with pytest.raises(ModelError, match=f"transformers {version} has no MadeUpForObject.*--upgrade"):
        configuration({"model_type": "made_up"}, "x")


def test_code_kernels_and_weights_of_others_are_never_asked_for() -> None:
    config = {
        **config_of("rt_detr"),
        "auto_map": {"AutoModel": "someone/net--code.Net"},
        "attn_implementation": "someone/kernel",
        "quantization_config": {"quant_method": "bitsandbytes"},
        "use_pretrained_backbone": True,
        "backbone_config": {**RT_RESNET, "auto_map": {"x": "y"}},
    }
    plain = plain_values(configuration(config, "x"))
    assert "auto_map" not in plain
    assert "auto_map" not in plain["backbone_config"]
    assert "quantization_config" not in plain
    assert "someone" not in str(plain)


def test_the_grid_is_what_the_model_needs() -> None:
    grid = grid_of(configuration(config_of("rt_detr"), "x"))
    assert grid is not None
    assert (grid.step, grid.strides) == (32, (16, 32))
    rf = grid_of(configuration(config_of("rf_detr"), "x"))
    assert rf is not None
    assert (rf.step, rf.strides) == (16, (8,))
    assert grid_of(configuration(config_of("yolos"), "x")) is None


@pytest.mark.parametrize("family", ["detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2"])
def test_frozen_norms_are_known_by_what_they_hold(family: str) -> None:
    model = vendor_model(family)
    frozen = [module for module in model.modules() if is_frozen_norm(module)]
    assert frozen
    assert {type(module).__name__ for module in frozen} & {
        "DetrFrozenBatchNorm2d",
        "RTDetrFrozenBatchNorm2d",
    } or (all(type(module).__name__.endswith("FrozenBatchNorm2d") for module in frozen))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen)
    trained = with_norm(model, "batch").eval()
    assert not any(is_frozen_norm(module) for module in trained.modules())
    image = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        one, other = model.double()(image.double()), trained.double()(image.double())
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-9, atol=1e-9)


def test_norms_stay_as_the_vendor_made_them_unless_asked() -> None:
    spec = ModelSpec(
        name="transformers:tiny",
        arguments={"config": config_of("rt_detr"), "preprocessing": {"size": {"height": 64, "width": 64}}},
        num_classes=4,
        norm="frozen",
    )
    count = {
        norm: sum(map(is_frozen_norm, build(spec.model_copy(update={"norm": norm})).modules()))
        for norm in ("frozen", "batch")
    }
    as_made = build(spec, as_made=True)
    assert count == {"frozen": sum(map(is_frozen_norm, as_made.modules())), "batch": 0}
    kept = build(spec)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in kept.modules()) == sum(
        isinstance(m, nn.BatchNorm2d) for m in as_made.modules()
    )
    thawed = {**config_of("rt_detr"), "freeze_backbone_batch_norms": False}
    all_frozen = build(spec.model_copy(update={"arguments": {**spec.arguments, "config": thawed}}))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in all_frozen.modules())
