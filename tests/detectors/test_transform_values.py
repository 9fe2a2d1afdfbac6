"""Values of torchvision's transforms and anchors: what can't be computed with is refused as it is built."""

import numpy as np
import pytest
import torch
from torchvision.models import detection, list_models

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ModelError

NAME = "retinanet_resnet18_fpn"


@pytest.mark.parametrize(
    ("field", "value", "instead"),
    [
        ("min_size", -64, "whole numbers from 1"),
        ("min_size", 0, "whole numbers from 1"),
        ("min_size", 1.5, "whole numbers from 1"),
        ("min_size", "x", "whole numbers from 1"),
        ("min_size", [640, -1], "whole numbers from 1"),
        ("max_size", 0, "whole numbers from 1"),
        ("max_size", 10**9, "whole numbers from 1"),
        ("fixed_size", 64, r"\[width, height\]"),
        ("fixed_size", [64], r"\[width, height\]"),
        ("size_divisible", 0, "whole numbers from 1"),
        ("image_mean", ["a", 1, 2], "finite numbers"),
        ("image_mean", [float("nan"), 1, 2], "finite numbers"),
        ("image_std", [0.2, 0, 0.2], "numbers above 0"),
        ("image_std", [], "numbers above 0"),
        ("anchor_sizes", [-3, 1, 2, 3, 4], "numbers above 0"),
    ],
)
def test_a_value_out_of_range_is_named_as_the_detector_is_built(field, value, instead):
    with pytest.raises(
        ModelError, match=rf"^{NAME}: .*{field.removeprefix('anchor_')} is .*{instead}.*model_arguments"
    ):
        build(ModelSpec(name=NAME, arguments={field: value}, num_classes=3))


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        (NAME, "score_thresh", 1.5),
        (NAME, "score_thresh", "high"),
        (NAME, "nms_thresh", -0.1),
        (NAME, "detections_per_img", 0),
        (NAME, "detections_per_img", -1),
        (NAME, "detections_per_img", 99.5),
        (NAME, "topk_candidates", -5),
        ("retinanet_resnet50_fpn", "fg_iou_thresh", 5),
        ("fcos_resnet50_fpn", "center_sampling_radius", -1.5),
        ("fcos_resnet50_fpn", "topk_candidates", True),
        ("ssdlite320_mobilenet_v3_large", "nms_thresh", float("nan")),
        ("fasterrcnn_mobilenet_v3_large_fpn", "rpn_nms_thresh", 2),
        ("fasterrcnn_mobilenet_v3_large_fpn", "rpn_post_nms_top_n_test", 0),
        ("fasterrcnn_mobilenet_v3_large_fpn", "rpn_pre_nms_top_n_train", 1.5),
        ("fasterrcnn_mobilenet_v3_large_fpn", "rpn_score_thresh", 1),
        ("fasterrcnn_mobilenet_v3_large_fpn", "rpn_positive_fraction", 3),
        ("fasterrcnn_mobilenet_v3_large_fpn", "box_detections_per_img", -1),
        ("fasterrcnn_mobilenet_v3_large_fpn", "box_batch_size_per_image", 0),
    ],
)
def test_a_threshold_or_a_number_of_boxes_out_of_range_is_refused(name, argument, value):
    with (
        torch.device("meta"),
        pytest.raises(ModelError, match=rf"^{name}: .*number.*model_arguments") as error,
    ):
        build(ModelSpec(name=name, arguments={argument: value}, num_classes=3))
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("arguments", [{"score_thresh": 0, "nms_thresh": 1, "detections_per_img": 1}])
def test_thresholds_at_the_ends_of_their_ranges_are_accepted(arguments):
    model = build(ModelSpec(name=NAME, arguments=arguments, num_classes=3)).eval()
    with torch.no_grad():
        (detections,) = model([torch.rand(3, 64, 64)])
    assert len(detections["boxes"]) == 1


@pytest.mark.parametrize("name", [*list_models(module=detection), NAME])
def test_what_detectors_come_with_is_accepted(name):
    with torch.device("meta"):  # no memory, no time for weights
        build(ModelSpec(name=name, num_classes=3))


@pytest.mark.parametrize("mean", [torch.tensor([0.5, 0.4, 0.3]), np.array([0.5, 0.4, 0.3]), (0.5, 0.4, 0.3)])
def test_values_of_other_types_are_read_as_numbers(mean):
    model = build(ModelSpec(name=NAME, arguments={"min_size": 64.0, "image_mean": mean}, num_classes=3))
    assert model.transform.image_mean is mean


def test_one_mean_for_all_channels_and_several_sizes_are_accepted():
    arguments = {"image_mean": [0.5], "image_std": [1], "min_size": [64, 96], "max_size": 128}
    model = build(ModelSpec(name=NAME, arguments=arguments, num_classes=3)).eval()
    with torch.no_grad():
        assert len(model([torch.rand(3, 64, 64)])) == 1
