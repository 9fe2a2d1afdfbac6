"""Stages of a pass are told apart: by a clock that only moves where the test moves it."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ConfigError
from autoprune.latency import runners
from autoprune.latency.runners import NETWORK, POST, PRE, in_file, in_torch


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def wrap(self, owner, name, seconds, stack):
        """Lets a call of ``owner.name`` take ``seconds``."""
        original = getattr(owner, name)

        def slow(*args, **kwargs):
            self.now += seconds
            return original(*args, **kwargs)

        setattr(owner, name, slow)
        stack.callback(setattr, owner, name, original)


def test_stages_in_torch(one_stage):
    clock = Clock()
    with ExitStack() as stack:
        for owner, name, seconds in (
            (one_stage.transform, "normalize", 1.0),
            (one_stage.backbone, "forward", 2.0),
            (one_stage.head, "forward", 4.0),
            (one_stage.anchor_generator, "forward", 8.0),
            (one_stage, "postprocess_detections", 16.0),
        ):
            clock.wrap(owner, name, seconds, stack)
        seconds = in_torch(one_stage, [torch.rand(3, 128, 128)], clock)()
    assert seconds == {PRE: 1.0, NETWORK: 6.0, POST: 24.0}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in one_stage.modules())


# What the file of each detector computes is tested by the contract of the runtimes.
@pytest.mark.parametrize("one_stage", ["retinanet"], indirect=True)
def test_stages_in_a_file(one_stage, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    clock = Clock()
    seen = []

    def slow_session(*args):
        session = open_session(*args)

        def run(image):
            clock.now += 2.0
            seen.append(image.shape)
            return session(image)

        return run

    def slow_fit(image, frame):
        clock.now += 1.0
        return fit(image, frame)

    open_session, fit = runners.open_session, runners.resize_and_pad
    monkeypatch.setattr(runners, "open_session", slow_session)
    monkeypatch.setattr(runners, "resize_and_pad", slow_fit)
    images = [torch.rand(3, 120, 128)] * 2
    run = in_file(one_stage, images, (120, 128), "onnxruntime", "cpu", 1, tmp_path, clock)
    assert run() == {PRE: 2.0, NETWORK: 2.0, POST: 0.0}
    assert seen[0][:2] == (2, 3)


def test_a_detector_of_two_stages_takes_one_image_in_other_runtimes(tmp_path):
    detector = build(ModelSpec(name="fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=2)).eval()
    images = [torch.rand(3, 64, 64)] * 2
    with pytest.raises(ConfigError, match="--batch 1"):
        in_file(detector, images, (64, 64), "onnxruntime", "cpu", 1, tmp_path)


def test_a_module_without_parts_is_all_network():
    clock = Clock()

    class Flat(nn.Module):
        def forward(self, images):
            clock.now += 3.0
            return [{} for _ in images]

    assert in_torch(Flat().eval(), [torch.rand(3, 8, 8)], clock)() == {PRE: 0.0, NETWORK: 3.0, POST: 0.0}


def test_detectors_of_other_libraries_run_as_raw_heads_where_they_have_some(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from tests.runtimes.test_raw_heads import VENDORS, Cells

    detector, images = Cells(*VENDORS["best class"]).eval(), [torch.rand(3, 96, 64)] * 2
    run = in_file(detector, images, (96, 64), "onnxruntime", "cpu", 1, tmp_path)
    assert set(run()) == {PRE, NETWORK, POST}
