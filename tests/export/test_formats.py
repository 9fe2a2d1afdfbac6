"""An exported file is kept only where it has the detections of the detector."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from autoprune import progress
from autoprune.config import ModelSpec
from autoprune.detectors import build, pixel_resizing
from autoprune.errors import ConfigError, ExportError, ModelError
from autoprune.export import formats
from autoprune.export.parity import Pictures
from autoprune.export.pretrained import write_pretrained
from autoprune.runtimes.decode_raw_heads import Frame
from autoprune.runtimes.onnx import FRAME_KEY
from autoprune.runtimes.sessions import open_session
from autoprune.vendors import DetectorTransform, VendorDetector

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


def test_both_onnx_files_and_the_program_have_the_detections_of_the_detector(detector, split, tmp_path):
    for path, result in (
        formats.write_onnx(detector, tmp_path, split, 4),
        formats.write_raw(detector, tmp_path, split, 4, split.sizes[0], "onnx"),
        formats.write_raw(detector, tmp_path, split, 4, split.sizes[0], "pt2"),
    ):
        assert path.is_file()
        assert result.matched == result.detections > 10
        assert result.extra == 0
        assert result.map_file == pytest.approx(result.map_detector, abs=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "raw_heads.onnx", "raw_heads.pt2"}


class Middle(VendorDetector):
    """Finds a box around the middle of an image."""

    def raw(self, batch):
        return self.vendor(batch.tensors)

    def detections(self, raw, batch):
        height, width = batch.tensors.shape[-2:]
        box = raw.new_tensor([[width / 4, height / 4, width / 2, height / 2]])
        return [
            {"boxes": box + raw.mean(), "scores": raw.mean()[None].sigmoid(), "labels": torch.ones(1).long()}
        ]


def test_a_librarys_detector_is_compared_on_images_of_the_one_size_that_its_file_takes(tmp_path):
    random, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate([(60, 40), (40, 60), (80, 120), (40, 60)]):
        pixels = random.integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    middle = Middle(nn.Conv2d(3, 1, 3), DetectorTransform(min_size=48, max_size=48)).eval()
    pictures = Pictures(folder, pixel_resizing(middle))
    assert pictures.sizes == [(48, 32), (32, 48), (32, 48), (32, 48)]
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=1000)):
        path, result = formats.write_onnx(middle, tmp_path, pictures, 2)
    assert (result.images, result.matched, result.detections) == (2, 2, 2)
    assert "model.onnx takes images of 32x48 pixels alone, which 3 of 4 have" in lines.getvalue()
    session = open_session(path, "onnxruntime")
    for index in (1, 2, 3):
        picture = pictures[index]
        (expected,) = middle([picture])
        assert np.allclose(session(picture.numpy())[0], expected["boxes"].detach(), atol=1e-4)


def test_a_file_of_other_weights_is_deleted(detector, split, tmp_path, monkeypatch):
    write_whole = formats.write_whole

    def other_weights(model, example, path):
        model = copy.deepcopy(model)
        with torch.no_grad():
            model.head.regression_head.bbox_reg.bias.add_(0.3)
        return write_whole(model, example, path)

    monkeypatch.setattr(formats, "write_whole", other_weights)
    with pytest.raises(ExportError, match=r"model\.onnx does not have the detector's detections"):
        formats.write_onnx(detector, tmp_path, split, 2)
    assert not list(tmp_path.iterdir())


def test_raw_heads_of_two_stages_are_refused(split, tmp_path):
    model = build(ModelSpec(name="fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=2)).eval()
    with pytest.raises(ModelError, match="without --raw-heads"):
        formats.write_raw(model, tmp_path, split, 1, (64, 64), "onnx")


@pytest.mark.parametrize(("size", "taken"), [((97, 131), "128x160"), ((96, 128), None)])
def test_another_input_than_was_given_is_said(detector, split, tmp_path, size, taken):
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=1000)):
        path, _ = formats.write_raw(detector, tmp_path, split, 1, size, "onnx")
    said = [line for line in lines.getvalue().splitlines() if line.startswith("raw heads for")]
    assert len(said) == (taken is not None)
    assert all(f"for {taken} pixels, not 97x131" in line for line in said)
    entries = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    frame = Frame.from_json(entries[FRAME_KEY])
    assert f"{frame.height}x{frame.width}" == (taken or "96x128")


@pytest.mark.parametrize(
    ("library", "format", "said"),
    [
        ("transformers", "ultralytics", "this is one of transformers; give --format transformers"),
        ("ultralytics", "transformers", "this is one of ultralytics; give --format ultralytics"),
        ("libreyolo", "ultralytics", "this is one of libreyolo; give --format onnx"),
        ("", "transformers", "this is no such one; give --format onnx"),
    ],
)
def test_the_format_of_another_library_names_that_of_the_detectors_own(tmp_path, library, format, said):
    made = type("Detector", (VendorDetector,), {"library": library})(nn.Identity(), DetectorTransform(8, 8))
    detector = made if library else nn.Identity()
    with pytest.raises(ConfigError) as refused:
        write_pretrained(tmp_path, detector, None) if format == "transformers" else formats.write_vendor(
            detector, tmp_path, format, {}, (8, 8)
        )
    assert str(refused.value) == f"--format {format} is for detectors of {format}, and {said}"
