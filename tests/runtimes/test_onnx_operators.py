"""Operators that the exporter lacks compute in ONNX Runtime what they compute in torch."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.runtimes.onnx_operators import OPSET, more_operators
from autoprune.runtimes.sessions import open_session

for library in ("onnx", "onnxruntime"):
    pytest.importorskip(library, reason="the extra `onnx` is not installed")


class Operator(nn.Module):
    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, image):
        return self.operator(image)


def write(operator, image, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an exporter that is not the newest
        torch.onnx.export(
            Operator(operator), (image,), str(path), dynamo=False, opset_version=OPSET, **options
        )


def in_file(operator, image, path):
    with more_operators():
        write(operator, image, path)
    (result,) = open_session(path, "onnxruntime", "cpu", 1)(image.numpy())
    return torch.from_numpy(result)


def noise(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(5, 20), (12, 7)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_with_antialiasing(mode, size, align_corners, tmp_path):
    def resize(images):
        return F.interpolate(images, size, mode=mode, align_corners=align_corners, antialias=True)

    images = noise(2, 3, 8, 11)
    torch.testing.assert_close(in_file(resize, images, tmp_path / "file.onnx"), resize(images))


def shrink(images):
    return F.interpolate(images, (4, 4), mode="bilinear", antialias=True)


def test_resizing_with_antialiasing_needs_one_size(tmp_path):
    sides = {"input_names": ["image"], "dynamic_axes": {"image": {2: "height", 3: "width"}}}
    with more_operators(), pytest.raises(ValueError, match="of unknown sizes; raw heads in pt2 have it"):
        write(shrink, noise(1, 3, 8, 8), tmp_path / "file.onnx", **sides)


def test_the_exporter_is_afterwards_as_before(tmp_path):
    with more_operators():
        pass
    with pytest.raises((torch.onnx.errors.UnsupportedOperatorError, ValueError)):  # torch 2.15: the latter
        write(shrink, noise(1, 3, 8, 8), tmp_path / "file.onnx")


def test_evenly_spaced_numbers_keep_their_type(tmp_path):
    """64 bits would reach grid_sample, which ONNX Runtime has for 32 alone."""

    def sample(images):
        line = torch.linspace(-1, 1, images.shape[-1], dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
        return F.grid_sample(images, grid, align_corners=False)

    images = noise(1, 3, 8, 8)
    torch.testing.assert_close(in_file(sample, images, tmp_path / "file.onnx"), sample(images))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("sort", ["sort", "argsort", "unordered sort", "unordered argsort"])
def test_equal_values_keep_their_order_in_a_stable_sort(sort, dim, descending, tmp_path):
    """Python's own sort is stable; without `stable`, torch promises the order of the values alone."""

    def places(values):
        if sort.startswith("unordered"):
            if sort == "unordered sort":
                return values.sort(dim=dim, descending=descending)[0]
            return values.gather(dim, values.argsort(dim=dim, descending=descending))
        if sort == "sort":
            return values.sort(dim=dim, descending=descending, stable=True)[1]
        return values.argsort(dim=dim, descending=descending, stable=True)

    values = (noise(40, 60) * 5).floor()
    got = in_file(places, values, tmp_path / "file.onnx")
    lines = values.T if dim == 0 else values
    # `reverse` of sorted keeps the order of equal values, too
    orders = [sorted(range(len(line)), key=line.__getitem__, reverse=descending) for line in lines.tolist()]
    expected = torch.tensor(orders)
    if sort.startswith("unordered"):
        expected = lines.gather(1, expected)
    assert torch.equal(got, expected.T if dim == 0 else expected)
