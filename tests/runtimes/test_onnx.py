"""ONNX files in ONNX Runtime and OpenVINO give what torch gives."""

import numpy as np
import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ConfigError, ModelError
from autoprune.runtimes import extras
from autoprune.runtimes.onnx import read_frame, write_raw_heads, write_whole
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.runtimes.sessions import open_session

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@pytest.fixture(scope="module")
def raw_file(one_stage, tmp_path_factory):
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    raw = RawHeads(one_stage, (64, 96))
    path = tmp_path_factory.mktemp("onnx") / "raw_heads.onnx"
    write_raw_heads(raw, path)
    return raw, path


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_raw_heads_give_what_torch_gives(raw_file, runtime):
    pytest.importorskip(runtime, reason=f"{RUNTIMES[runtime]} is not installed")
    raw, path = raw_file
    image = torch.rand(1, 3, raw.frame.height, raw.frame.width, generator=torch.Generator().manual_seed(3))
    boxes, scores = open_session(path, runtime, threads=1)(image.numpy())
    with torch.inference_mode():
        wanted_boxes, wanted_scores = (tensor.numpy() for tensor in raw(image))
    largest = np.abs(wanted_boxes).max()
    assert np.abs(boxes - wanted_boxes).max() < 1e-3 * largest
    assert np.abs(scores - wanted_scores).max() < 1e-3


def test_a_file_carries_its_frame(raw_file):
    raw, path = raw_file
    assert read_frame(path) == raw.frame


def test_a_whole_detector_takes_images_of_any_size(demo_settings, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    from autoprune.data.coco import open_data
    from autoprune.detectors import load_dense

    detector, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    images, _ = open_data(demo_settings["data"], "val").batch([0, 1])
    path = tmp_path / "model.onnx"
    names = write_whole(detector, images[0], path)
    assert names == ("boxes", "scores", "labels")
    session = open_session(path, "onnxruntime", threads=1)
    for image in (images[1], images[1][:, :100, :]):
        with torch.inference_mode():
            (expected,) = detector([image])
        found = dict(zip(names, session(image.numpy()), strict=True))
        assert len(expected["scores"]) > 3
        assert np.allclose(found["scores"], expected["scores"], atol=1e-4)
        assert np.allclose(found["boxes"], expected["boxes"], atol=0.01)
        assert np.array_equal(found["labels"], expected["labels"])
    with pytest.raises(ModelError, match="no raw-heads file"):
        read_frame(path)


@pytest.mark.slow
def test_a_whole_detector_of_two_stages(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    arguments = {"min_size": 96, "max_size": 96, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 4}
    spec = ModelSpec(name="fasterrcnn_mobilenet_v3_large_320_fpn", arguments=arguments, num_classes=2)
    detector = build(spec).eval()
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    names = write_whole(detector, image, tmp_path / "model.onnx")
    found = dict(
        zip(
            names, open_session(tmp_path / "model.onnx", "onnxruntime", threads=1)(image.numpy()), strict=True
        )
    )
    with torch.inference_mode():
        (expected,) = detector([image])
    assert len(found["scores"]) == len(expected["scores"]) > 0
    order, wanted = np.lexsort(found["boxes"].T), np.lexsort(expected["boxes"].numpy().T)
    assert np.allclose(found["boxes"][order], expected["boxes"].numpy()[wanted], atol=0.01)


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras, "import_module", missing)
    with pytest.raises(
        ConfigError, match=r"openvino can't be imported .* `pip install 'autoprune\[openvino\]'"
    ):
        extras.need("openvino")
    with pytest.raises(ConfigError, match=r"pip install 'autoprune\[onnx\]'"):
        extras.need("onnxruntime")


def test_runtimes_and_devices_that_are_not_there_are_refused(raw_file, tmp_path):
    _, path = raw_file
    with pytest.raises(ConfigError, match=r"no runtime 'tensorrt' .* torch, onnxruntime, openvino"):
        open_session(path, "tensorrt")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    with pytest.raises(ModelError, match="onnxruntime can't read"):
        open_session(tmp_path / "broken.onnx", "onnxruntime")
    with pytest.raises(ConfigError, match=r"CUDAExecutionProvider .* --device cpu"):
        open_session(path, "onnxruntime", "cuda")
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    with pytest.raises(ConfigError, match="openvino runs on the CPU"):
        open_session(path, "openvino", "cuda")
