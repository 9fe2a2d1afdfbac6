"""Class heads whose shapes say nothing, or two things, about the number of classes."""

import functools

import pytest
import torch

from autoprune import detectors
from autoprune.detectors.resnets import OWN, resnet_detector
from autoprune.errors import ModelError

from .conftest import SMALL, one_line, small

WEIGHT = "head.classification_head.cls_logits.weight"
BIAS = "head.classification_head.cls_logits.bias"


def load(tmp_path, state, classes=None, **options):
    torch.save(state, tmp_path / "w.pt")
    return detectors.load_dense(
        "retinanet_resnet18_fpn", SMALL, classes, weights=tmp_path / "w.pt", **options
    )


@pytest.mark.parametrize("classes", [None, 4])
def test_a_head_that_is_for_no_number_of_classes_is_refused(tmp_path, classes):
    state = small().state_dict()
    rows = state[BIAS].numel()
    anchors = rows // 4
    for weight_rows, bias_rows, message in (
        (rows - 1, rows, f"has {rows - 1} rows, and here each class has {anchors}"),
        (rows + anchors, rows, f"`{WEIGHT}` is for 5 classes and `{BIAS}` for 4"),
        (anchors, anchors, "is for 1 class, and the background counts as one, too"),
    ):
        weight = state[WEIGHT].repeat(2, 1, 1, 1)[:weight_rows]
        with pytest.raises(ModelError) as error:
            load(tmp_path, {**state, WEIGHT: weight, BIAS: state[BIAS].repeat(2)[:bias_rows]}, classes)
        assert message in one_line(error)
        assert "w.pt" in one_line(error)


def test_a_head_of_another_width_is_another_architecture(tmp_path):
    state = small().state_dict()
    with pytest.raises(ModelError, match="1 keys differ"):
        load(tmp_path, {**state, WEIGHT: torch.ones(4, 5, 3, 3)}, 4)


def test_a_fresh_head_can_be_refused(tmp_path):
    state = small().state_dict()
    _, spec = load(tmp_path, state, 7)
    assert spec.num_classes == 7
    with pytest.raises(ModelError, match="has 4 classes with the background, not 7; omit --num-classes"):
        load(tmp_path, state, 7, fresh_head=False)
    _, spec = load(tmp_path, state, 4, fresh_head=False)
    assert spec.num_classes == 4


@pytest.mark.parametrize(("classes", "norm"), [(None, "auto"), (7, "frozen")])
def test_only_one_of_the_detectors_that_are_built_has_values(tmp_path, monkeypatch, classes, norm):
    made = []

    @functools.wraps(OWN["retinanet_resnet18_fpn"])
    def builder(**arguments):
        made.append(resnet_detector(18, "retinanet", **arguments))
        return made[-1]

    state = small().state_dict()
    monkeypatch.setitem(OWN, "retinanet_resnet18_fpn", builder)
    model, _ = load(tmp_path, state, classes, norm=norm)
    assert [one is model for one in made if not next(one.parameters()).is_meta] == [True]


@pytest.mark.parametrize("content", [None, [], "text", {}])
def test_weights_that_hold_nothing_are_refused(tmp_path, content):
    with pytest.raises(ModelError, match=r"w\.pt holds no state dict; save model\.state_dict"):
        load(tmp_path, content)
