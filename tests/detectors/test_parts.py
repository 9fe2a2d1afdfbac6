"""Where feature maps and predictions are found: by names, by torchvision's children, by the trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs
from autoprune.detectors.parts import find_parts, prediction_inputs
from autoprune.errors import ModelError
from autoprune.graph import analyze, prune
from autoprune.modules.tensor_tree import feature_maps
from autoprune.training import Teacher

SMALL = {"min_size": 64, "max_size": 64}


def build_small(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSpec(name=name, arguments=arguments, num_classes=3)).eval()


@pytest.mark.parametrize(
    ("name", "arguments", "layers"),
    [
        (
            "retinanet_resnet18_fpn",
            SMALL,
            {"head.classification_head.cls_logits": 256, "head.regression_head.bbox_reg": 256},
        ),
        (
            "fcos_resnet50_fpn",
            SMALL,
            {
                "head.classification_head.cls_logits": 256,
                "head.regression_head.bbox_reg": 256,
                "head.regression_head.bbox_ctrness": 256,
            },
        ),
        ("ssdlite320_mobilenet_v3_large", {}, {}),  # it reads the backbone's outputs
    ],
)
def test_what_prediction_layers_read(name: str, arguments: dict[str, Any], layers: dict[str, int]) -> None:
    model = build_small(name, **arguments)
    size = 64 if arguments else 320
    graph = analyze(model, detector_inputs((size, size)))
    parts = find_parts(model, graph)
    assert parts is not None
    read = prediction_inputs(graph, parts)
    if name.startswith("ssd"):  # depthwise layers stand between; none of what they read is an output
        assert not {group for group, _ in read.values()} & {group for group, _ in graph.features["backbone"]}
    else:
        assert {layer: len(index) for layer, (_, index) in read.items()} == layers
    assert parts.logits == ("head.classification_head",)
    assert parts.head == graph.head == "head"  # the trace finds the same
    assert [group for group, _ in graph.head_inputs] == [group for group, _ in parts.features]


class Plain(nn.Module):
    """A detector whose children have names of its own; it gets a list of images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.down = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.predictor = Predictor()

    def forward(self, images: list[Tensor], targets: Any = None) -> list[dict[str, Tensor]]:
        fine = self.stem(torch.stack(images)).relu()
        boxes, scores = self.predictor([fine, self.down(fine).relu()])
        return [{"boxes": b, "scores": s} for b, s in zip(boxes, scores, strict=True)]


class Predictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        boxes, scores = ([layer(m).flatten(2) for m in maps] for layer in (self.boxes, self.scores))
        return torch.cat(boxes, 2), torch.cat(scores, 2)


def test_the_trace_finds_the_feature_maps_of_other_detectors() -> None:
    torch.manual_seed(0)
    model = Plain().eval()
    graph = analyze(model, detector_inputs((32, 32)))
    parts = find_parts(model, graph)
    assert parts is not None
    assert (parts.head, parts.makers) == ("predictor", ())
    assert [group for group, _ in parts.features] == ["stem", "stem"]  # the shared head ties the levels
    keep = {"stem": [0, 3, 5]}
    teacher = Teacher(model, graph, keep)
    images = [torch.rand(3, 32, 32) for _ in range(2)]
    pruned = prune(model, graph, keep)
    with torch.no_grad(), teacher.tap(pruned) as tap:
        pruned(images)
        assert teacher.loss(tap.take())["features"].item() > 1e-3  # `down` has lost inputs
        pruned(images)
        captured = tap.take()
    assert captured.batch is images
    expected = model.stem(torch.stack(images)).relu()[:, keep["stem"]]
    torch.testing.assert_close(captured.features[0], expected)


def test_an_attribute_names_the_modules_that_make_them() -> None:
    model = Plain().eval()
    model.features = ("stem", "down")
    graph = analyze(model, detector_inputs((32, 32)))
    parts = find_parts(model, graph)
    assert parts is not None
    assert (parts.head, parts.makers) == ("predictor", ("stem", "down"))
    assert [len(index) for _, index in parts.features] == [8, 8]
    model.features = ("predictor",)
    with pytest.raises(ModelError, match="names `predictor`, which returned no feature maps"):
        find_parts(model, analyze(model, detector_inputs((32, 32))))


def test_a_child_of_that_name_is_no_list_of_names() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

        def forward(self, images: list[Tensor]) -> Tensor:
            return self.features(torch.stack(images))

    model = Classifier().eval()
    assert analyze(model, detector_inputs((16, 16))).prunable["features.0"].width == 8


def test_feature_maps_are_the_tensors_of_four_axes() -> None:
    a, b = torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4)
    assert feature_maps({"a": a, "x": torch.ones(2), "b": (b, None, 3)}) == [a, b]
