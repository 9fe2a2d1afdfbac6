from pathlib import Path

import torch

from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import build, demo, load_state, resize_rule
from autoprune.training import recalibrate


def test_the_shipped_weights_have_accuracy_to_lose(tmp_path: Path) -> None:
    folder = make_shapes(tmp_path / "shapes", demo.DATA_SEED, 8, 48, size=demo.IMAGE_SIZE)
    model = build(demo.MODEL).eval()
    model.load_state_dict(load_state(demo.WEIGHTS))
    validation = open_data(folder, "val", resize_rule(model))
    assert validation.num_classes == demo.MODEL.num_classes
    assert validation.most_common_size == (demo.IMAGE_SIZE, demo.IMAGE_SIZE)
    assert evaluate(model, validation).map >= 0.5
    assert demo.WEIGHTS.stat().st_size <= 12e6


def test_the_shipped_statistics_are_those_of_the_data(tmp_path: Path) -> None:
    """They belong to the averaged weights: the same images give nearly the same statistics again."""
    folder = make_shapes(tmp_path / "shapes", demo.DATA_SEED, 32, 1, size=demo.IMAGE_SIZE)
    model = build(demo.MODEL).eval()
    model.load_state_dict(load_state(demo.WEIGHTS))
    split = open_data(folder, "train", resize_rule(model))
    reinitialize = recalibrate(model, split, images=32, batch_size=16, device="cpu", seed=0)
    for name in ("backbone.body.bn1", "backbone.body.layer3.1.bn2"):
        shipped, found = model.get_submodule(name), reinitialize.get_submodule(name)
        scale = shipped.running_var.sqrt()
        assert ((shipped.running_mean - found.running_mean) / scale).abs().mean() < 0.2
        assert torch.log(found.running_var / shipped.running_var).abs().mean() < 0.3
