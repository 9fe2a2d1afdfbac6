import socket
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from huggingface_hub import constants, hf_api

from autoprune.errors import ModelError
from autoprune.vendors import transformers_checks
from autoprune.vendors.transformers_checks import offline
from autoprune.vendors.transformers_families import FAMILIES, configuration, quiet

from .transformers_models import RT_RESNET, config_of, vendor_model


def refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        configuration(config, "folder/config.json")
    assert "\n" not in str(caught.value)
    assert "folder/config.json" in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_vendor_takes_by_default_passes(family: str) -> None:
    with quiet():
        plain = getattr(transformers, FAMILIES[family].model).config_class().to_dict()
    assert configuration(plain, "x").model_type == family


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("feat_strides", [0, 32]),
        ("num_queries", 0),
        ("num_queries", -3),
        ("d_model", 0),
        ("decoder_in_channels", [16, -1]),
        ("encoder_attention_heads", 0),
        ("decoder_layers", 0),
    ],
)
def test_counts_below_one_are_refused_by_their_field(field: str, value: Any) -> None:
    refused({**config_of("rt_detr"), field: value}, f"`{field}` holds -?\\d, and must be 1 or more")


def test_values_of_a_backbone_are_named_by_their_place() -> None:
    for field, value, message in (
        ("hidden_sizes", [8, 0, 24, 32], "holds 0"),
        ("embedding_size", float("nan"), "holds the number nan"),
    ):
        backbone = {**RT_RESNET, field: value}
        refused({**config_of("rt_detr"), "backbone_config": backbone}, f"`backbone_config.{field}` {message}")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_named(number: float) -> None:
    refused(
        {"model_type": "rt_detr", "layer_norm_eps": number}, f"`layer_norm_eps` holds the number {number}"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"-1": "a", "0": "b", "1": "c"}, "each label from 0 to 2 once, and has the keys -1, 0, 1"),
        ({"10": "a", "0": "b", "1": "c"}, "has the keys 10, 0, 1"),
        ({"0": "a", "00": "b", "1": "c"}, "each label from 0 to 2 once"),
        ({"first": "a"}, "has the keys first"),
        ({"0": "a", "1": " "}, "names label 1 ' '; give it a name"),
        ({"0": None}, "names label 0 None"),
        ({}, r"must name each class by its label from 0, .*, not \{\}; restore"),
        (["a"], "must name each class by its label from 0"),
    ],
)
def test_labels_are_named_once_each(names: dict[str, Any], message: str) -> None:
    refused({**config_of("rt_detr"), "id2label": names}, f"`id2label` .*{message}")


def test_labels_may_be_in_any_order() -> None:
    names = {"2": "c", "0": "a", "1": "b"}
    made = configuration({**config_of("rt_detr"), "id2label": names}, "x")
    assert made.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Names that are looked up in the network; none is found there."""
    seen: list[Any] = []

    def look_up(*names: Any, **_: Any) -> Any:
        seen.append(names[:2])
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return seen


@pytest.mark.parametrize("timm", [True, False, None])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "yolos"])
def test_a_backbone_that_is_only_named_is_not_looked_up(
    family: str, timm: bool | None, lookups: list[Any]
) -> None:
    config = {**config_of(family), "backbone": "resnet50", "backbone_config": None}
    if timm is not None:
        config["use_timm_backbone"] = timm
    if timm is not False and family in ("detr", "conditional_detr", "deformable_detr"):
        assert configuration(config, "x").backbone_config.model_type == "timm_backbone"  # without its hub
    else:
        refused(config, "names its backbone 'resnet50' and does not describe it")
    assert not lookups


def test_requests_reach_no_network_within(lookups: list[Any]) -> None:
    with offline(), pytest.raises(OSError, match="offline mode"):
        hf_api.HfApi().repo_exists("someone/net")
    assert not lookups
    assert not constants.HF_HUB_OFFLINE


def test_a_backbone_of_timm_needs_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"its backbone resnet50 is one of timm.*pip install timm"):
        configuration({"model_type": "detr", "use_timm_backbone": True, "backbone": "resnet50"}, "x")


@pytest.mark.parametrize("family", ["rt_detr", "rt_detr_v2", "d_fine"])
def test_anchors_are_those_of_the_input_whatever_size_they_were_made_for(family: str) -> None:
    """At that size they are those that the vendor makes ahead."""
    kind, image = getattr(transformers, FAMILIES[family].model), torch.rand(1, 3, 64, 64)
    state = vendor_model(family).state_dict()

    def boxes(config: Any) -> torch.Tensor:
        with quiet(), torch.inference_mode():
            model = kind(config).eval()
            model.load_state_dict(state)
            result: torch.Tensor = model(image).pred_boxes
            return result

    ahead = kind.config_class.from_dict({**config_of(family), "anchor_image_size": [64, 64]})
    for size in ([64, 64], [640, 640]):
        config = configuration({**config_of(family), "anchor_image_size": size}, "x")
        torch.testing.assert_close(boxes(config), boxes(ahead))
