"""The contract of every runtime: it computes what torch computes, and says in one line what is missing.

A new runtime needs a record in `RUNTIMES`, and its name in `config.Config.latency_runtime`.
"""

import re
from typing import get_args

import numpy as np
import pytest
import torch

from autoprune.config import Config, ModelSpec
from autoprune.data.coco import open_data
from autoprune.detectors import build, load_dense
from autoprune.errors import ConfigError, ModelError
from autoprune.export import parity
from autoprune.runtimes import extras
from autoprune.runtimes.onnx import write_raw_heads, write_whole
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.runtimes.sessions import RUNTIMES, find_runtime, need_runtime, open_session
from autoprune.runtimes.torch_export import write_program

WRITERS = {".onnx": write_raw_heads, ".pt2": write_program}
SIZE = (64, 96)


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request):
    for library in RUNTIMES[request.param].libraries:
        pytest.importorskip(library, reason=f"{library} is not installed")
    return RUNTIMES[request.param]


@pytest.fixture
def whole_runtime(runtime):
    """A runtime that can run a whole detector from a file; torch.export can't express one."""
    if runtime.suffix != ".onnx":
        pytest.skip(f"{runtime.name} runs whole detectors without a file")
    return runtime


@pytest.fixture(scope="module")
def raw_files(one_stage, tmp_path_factory):
    """Raw heads, and a function from a suffix to a file of them."""
    raw, folder = RawHeads(one_stage, SIZE), tmp_path_factory.mktemp("raw")

    def file(suffix):
        path = folder / f"raw_heads{suffix}"
        if not path.exists():
            WRITERS[suffix](raw, path)
        return path

    return raw, file


@pytest.fixture(scope="module")
def images(demo_settings):
    """The validation images of the demo."""
    return open_data(demo_settings["data"], "val")


@pytest.fixture(scope="module")
def whole(demo_settings, images, tmp_path_factory):
    """The demo's detector, with a file of it and the names of its outputs."""
    detector, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    path = tmp_path_factory.mktemp("whole") / "model.onnx"
    return detector, path, write_whole(detector, images.batch([0])[0][0], path)


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A detector of two stages, with an image, a file of it and the names of its outputs."""
    arguments = {"min_size": 96, "max_size": 96, "box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 4}
    spec = ModelSpec(name="fasterrcnn_mobilenet_v3_large_320_fpn", arguments=arguments, num_classes=2)
    detector = build(spec).eval()
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("two_stages") / "model.onnx"
    return detector, image, path, write_whole(detector, image, path)


def test_raw_heads_give_what_torch_gives(raw_files, runtime):
    raw, file = raw_files
    session = open_session(file(runtime.suffix), runtime.name, threads=1)
    image = torch.rand(1, 3, raw.frame.height, raw.frame.width, generator=torch.Generator().manual_seed(3))
    boxes, scores = session(image.numpy())
    with torch.inference_mode():
        expected_boxes, expected_scores = (tensor.numpy() for tensor in raw(image))
    assert boxes.shape == expected_boxes.shape
    assert scores.shape == expected_scores.shape
    assert np.abs(boxes - expected_boxes).max() < 1e-3 * np.abs(expected_boxes).max()
    assert np.abs(scores - expected_scores).max() < 1e-3


@pytest.mark.parametrize("one_stage", ["retinanet"], indirect=True)
def test_detections_of_raw_heads_are_within_the_tolerance_of_an_export(one_stage, raw_files, images, runtime):
    raw, file = raw_files
    path = file(runtime.suffix)
    session = open_session(path, runtime.name, threads=1)
    finders = parity.padded(one_stage, raw.frame), parity.raw_heads_file(session, raw.frame)
    result = parity.compare(*finders, images, 3)
    assert result.detections > 5
    result.check(path.name)


def test_a_whole_detector_takes_images_of_any_size(whole, images, whole_runtime):
    detector, path, names = whole
    assert names == ("boxes", "scores", "labels")
    session = open_session(path, whole_runtime.name, threads=1)
    image = images.batch([1])[0][0]
    for each in (image, image[:, :100, :]):
        with torch.inference_mode():
            (expected,) = detector([each])
        detections = dict(zip(names, session(each.numpy()), strict=True))
        assert len(expected["scores"]) > 3
        assert np.allclose(detections["scores"], expected["scores"], atol=1e-4)
        assert np.allclose(detections["boxes"], expected["boxes"], atol=0.01)
        assert np.array_equal(detections["labels"], expected["labels"])


@pytest.mark.slow
def test_a_whole_detector_of_two_stages(two_stages, whole_runtime):
    detector, image, path, names = two_stages
    session = open_session(path, whole_runtime.name, threads=1)
    detections = dict(zip(names, session(image.numpy()), strict=True))
    with torch.inference_mode():
        (expected,) = detector([image])
    assert len(detections["scores"]) == len(expected["scores"]) > 0
    order, wanted = np.lexsort(detections["boxes"].T), np.lexsort(expected["boxes"].numpy().T)
    assert np.allclose(detections["boxes"][order], expected["boxes"].numpy()[wanted], atol=0.01)


def test_a_file_that_it_cant_read_is_refused_in_one_line(runtime, tmp_path):
    path = tmp_path / f"broken{runtime.suffix}"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=rf"{runtime.name} can't read {re.escape(str(path))}") as error:
        open_session(path, runtime.name)
    assert "\n" not in str(error.value)


def test_a_device_that_it_does_not_run_on_is_refused(raw_files, runtime):
    _, file = raw_files
    with pytest.raises(ConfigError, match=rf"{runtime.name} runs on .*cpu.* not on 'mps'; give --device cpu"):
        open_session(file(runtime.suffix), runtime.name, "mps")


def test_its_version_is_in_its_label(runtime):
    assert re.fullmatch(r"\d+\.\d+[\w.+]*", runtime.version)


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.extra is not None])
def test_a_missing_library_is_named_with_the_command_that_installs_it(name, monkeypatch, tmp_path):
    def missing(library):
        raise ImportError(f"No module named {library!r}")

    monkeypatch.setattr(extras, "import_module", missing)
    runtime = RUNTIMES[name]
    command = re.escape(f"`pip install 'autoprune[{runtime.extra}]'`")
    for attempt in (
        lambda: need_runtime(name),
        lambda: open_session(tmp_path / "any", name),
        lambda: runtime.version,
    ):
        with pytest.raises(ConfigError, match=rf"{name} can't be imported .*{command}") as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_unknown_runtime_is_refused_with_the_names_of_all(tmp_path):
    for attempt in (
        find_runtime,
        need_runtime,
        lambda name: open_session(tmp_path / "any.onnx", name),
    ):
        with pytest.raises(ConfigError, match=r"no runtime 'tensorrt'.* torch, onnxruntime, openvino"):
            attempt("tensorrt")


def test_onnxruntime_without_cuda_says_so(raw_files):
    library = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    if "CUDAExecutionProvider" in library.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    _, file = raw_files
    with pytest.raises(ConfigError, match=r"CUDAExecutionProvider .* --device cpu"):
        open_session(file(".onnx"), "onnxruntime", "cuda")


def test_the_settings_offer_every_runtime():
    assert get_args(Config.model_fields["latency_runtime"].annotation) == tuple(RUNTIMES)
