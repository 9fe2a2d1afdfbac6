"""Samples become batches; pixels and boxes against what is painted."""

from typing import Any

import torch

from autoprune.images.augment import change_boxes, change_pixels, draw_change
from autoprune.images.batch import make_sample, pinned, to_batch

CPU = torch.device("cpu")


def painted() -> tuple[torch.Tensor, dict[str, Any]]:
    image = torch.zeros(3, 20, 32, dtype=torch.uint8)
    image[:, 3:9, 4:14] = 255
    return image, {"boxes": torch.tensor([[4.0, 3, 14, 9]]), "labels": torch.tensor([2]), "image_id": 5}


def test_bytes_become_fractions_and_a_flip_mirrors_pixels_and_boxes() -> None:
    image, target = painted()
    (plain, mirrored), targets = to_batch([make_sample(image, target, flip) for flip in (False, True)], "cpu")
    assert plain.dtype == torch.float32
    assert set(plain.unique().tolist()) == {0.0, 1.0}
    for pixels, each in zip((plain, mirrored), targets, strict=True):
        rows, columns = torch.nonzero(pixels[0], as_tuple=True)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert each["boxes"].tolist() == [[int(edge) for edge in edges]]
        assert (each["labels"].tolist(), each["image_id"]) == ([2], 5)
    assert image.max() == 255, "the image may be kept for the next epoch"
    assert target["boxes"].tolist() == [[4, 3, 14, 9]]


def test_a_change_comes_before_the_flip_for_pixels_and_boxes_alike() -> None:
    image, target = painted()
    change = draw_change((20, 32), 3)
    (pixels,), (changed,) = to_batch([make_sample(image, target, True, change)], CPU)
    expected = change_boxes(target, (20, 32), change)["boxes"]
    assert torch.equal(pixels, change_pixels(image / 255, change).flip(-1))
    assert torch.equal(changed["boxes"][:, [2, 0]], 32 - expected[:, [0, 2]])
    assert torch.equal(changed["boxes"][:, [1, 3]], expected[:, [1, 3]])


def test_memory_is_pinned_for_cuda_alone() -> None:
    sample = make_sample(*painted())
    assert pinned(sample, CPU) is sample
