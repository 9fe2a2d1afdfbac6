"""The shipped weights are what the demo says of them."""

from pathlib import Path

import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.data import demo_detector
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import build, detector_inputs, load_state, resize_rule
from autoprune.graph import analyze
from autoprune.training import recalibrate

SHIPPED = [
    pytest.param(demo_detector.MODEL, demo_detector.WEIGHTS, 12e6, id="dense"),
    pytest.param(demo_detector.SIBLING, demo_detector.SIBLING_WEIGHTS, 4e6, id="sibling"),
]


@pytest.mark.parametrize(("spec", "weights", "most_bytes"), SHIPPED)
def test_the_shipped_weights_have_accuracy_to_lose(
    tmp_path: Path, spec: ModelSpec, weights: Path, most_bytes: float
) -> None:
    folder = make_shapes(tmp_path / "shapes", demo_detector.DATA_SEED, 8, 48, size=demo_detector.IMAGE_SIZE)
    model = build(spec).eval()
    model.load_state_dict(load_state(weights))
    validation = open_data(folder, "val", resize_rule(model))
    assert validation.num_classes == spec.num_classes
    assert validation.most_common_size == (demo_detector.IMAGE_SIZE, demo_detector.IMAGE_SIZE)
    assert evaluate(model, validation).map >= 0.5
    assert weights.stat().st_size <= most_bytes


def test_the_sibling_is_the_same_network_with_fewer_channels() -> None:
    dense, sibling = (build(spec) for spec in (demo_detector.MODEL, demo_detector.SIBLING))
    shapes = {name: tensor.shape for name, tensor in sibling.state_dict().items()}
    assert shapes.keys() == dense.state_dict().keys()
    assert shapes["backbone.body.layer3.1.conv2.weight"][0] == 256 * 36 // 64
    inputs = detector_inputs((demo_detector.IMAGE_SIZE, demo_detector.IMAGE_SIZE))
    small, large = (analyze(model.eval(), inputs).gflops() for model in (sibling, dense))
    assert small / large == pytest.approx(0.34, abs=0.005)


def test_the_shipped_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    """They belong to the averaged weights: the same images give nearly the same statistics again."""
    folder = make_shapes(tmp_path / "shapes", demo_detector.DATA_SEED, 32, 1, size=demo_detector.IMAGE_SIZE)
    model = build(demo_detector.MODEL).eval()
    model.load_state_dict(load_state(demo_detector.WEIGHTS))
    split = open_data(folder, "train", resize_rule(model))
    recalibrated = recalibrate(model, split, images=32, batch_size=16, device="cpu", seed=0)
    for name in ("backbone.body.bn1", "backbone.body.layer3.1.bn2"):
        shipped, again = model.get_submodule(name), recalibrated.get_submodule(name)
        scale = shipped.running_var.sqrt()
        assert ((shipped.running_mean - again.running_mean) / scale).abs().mean() < 0.2
        assert torch.log(again.running_var / shipped.running_var).abs().mean() < 0.3
