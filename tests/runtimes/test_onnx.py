"""A file of raw heads carries how it is read; what runtimes compute is in `contracts/test_runtimes.py`."""

import pytest
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.graph import analyze, prune
from autoprune.graph.emptiable import largest_set
from autoprune.runtimes.decode_raw_heads import Frame
from autoprune.runtimes.onnx import FRAME_KEY, write_raw_heads, write_whole
from autoprune.runtimes.onnx_operators import OPSET
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.runtimes.sessions import open_session

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")


class Detector(nn.Module):
    """Gives one box around each image."""

    def forward(self, images):
        height, width = images[0].shape[-2:]
        box = torch.ones(1, 4) * torch.tensor([0, 0, width, height])
        return [{"boxes": box, "scores": images[0].mean().reshape(1), "labels": torch.ones(1).long()}]


class Unexportable(nn.Module):
    """Fails while it is traced."""

    def forward(self, images):
        if torch.jit.is_tracing():
            raise RuntimeError("no such\noperator")
        return Detector()(images)


def metadata(model):
    return {entry.key: entry.value for entry in model.metadata_props}


def test_a_file_carries_its_frame(one_stage, tmp_path):
    raw = RawHeads(one_stage, (64, 96))
    path = tmp_path / "raw_heads.onnx"
    write_raw_heads(raw, path, batch=2)
    model = onnx.load(str(path))
    assert Frame.from_json(metadata(model)[FRAME_KEY]) == raw.frame
    (image,) = model.graph.input
    shape = [side.dim_value for side in image.type.tensor_type.shape.dim]
    assert (image.name, shape) == ("image", [2, 3, raw.frame.height, raw.frame.width])
    assert [output.name for output in model.graph.output] == ["boxes", "scores"]


def test_a_whole_detector_has_its_outputs_in_order_and_no_frame(tmp_path):
    path = tmp_path / "model.onnx"
    assert write_whole(Detector(), torch.rand(3, 8, 8), path) == ("boxes", "scores", "labels")
    model = onnx.load(str(path))
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "labels"]
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {OPSET}
    assert FRAME_KEY not in metadata(model)


def test_what_the_exporter_fails_on_is_said_in_one_line_and_leaves_no_file(tmp_path):
    with pytest.raises(ModelError, match=r"RuntimeError: no such operator.*try --raw-heads"):
        write_whole(Unexportable(), torch.rand(3, 8, 8), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def counting_convolutions(raw, image):
    """Boxes and scores, and how many convolutions are called for them."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for module in raw.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        outputs = raw(image)
    for hook in hooks:
        hook.remove()
    return outputs, len(calls)


def test_the_kernels_of_emptied_branches_are_gone(one_stage, tmp_path):
    torch.manual_seed(0)
    graph = analyze(one_stage, ([torch.rand(3, 128, 128)],))
    pruned = prune(one_stage, graph, {name: [] for name in largest_set(graph, graph.emptiable)}).eval()
    raw, path = RawHeads(pruned, (128, 128)), tmp_path / "raw_heads.onnx"
    image = torch.rand(1, 3, raw.frame.height, raw.frame.width)
    expected, convolutions = counting_convolutions(raw, image)
    _, of_dense = counting_convolutions(RawHeads(one_stage, (128, 128)), image)
    write_raw_heads(raw, path)
    nodes = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert nodes.count("Conv") == convolutions
    assert (of_dense - convolutions >= 2) == bool(graph.emptiable)
    got = open_session(path, "onnxruntime", "cpu", 1)(image.numpy())
    for ours, theirs, tolerance in zip(got, expected, (0.01, 1e-4), strict=True):  # pixels, scores
        torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=tolerance, rtol=1e-4)
