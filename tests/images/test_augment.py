"""Changes of images against brute force: painted things are looked for in the changed pixels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoprune.images.augment import (
    COLORS,
    GRAY,
    SCALES,
    VISIBLE,
    Change,
    change_boxes,
    change_pixels,
    draw_change,
)

SIZE = (60, 80)
SEEDS = range(40)


def target(*boxes: tuple[float, ...]) -> dict[str, Any]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(1, len(boxes) + 1),
        "image_id": 7,
    }


def uncolored(change: Change) -> Change:
    return change._replace(brightness=1.0, contrast=1.0, saturation=1.0)


def painted(box: tuple[int, ...]) -> Tensor:
    """White within the box, black elsewhere."""
    image = torch.zeros(3, *SIZE)
    image[:, box[1] : box[3], box[0] : box[2]] = 1.0
    return image


@pytest.mark.parametrize("seed", SEEDS)
def test_pixels_under_a_box_follow_the_box(seed: int) -> None:
    """The edges of what is white, as far as it is seen, are those of the box to a pixel."""
    random = np.random.default_rng(seed)
    left, top = int(random.integers(0, 50)), int(random.integers(0, 35))
    box = (left, top, left + int(random.integers(8, 30)), top + int(random.integers(8, 25)))
    change = uncolored(draw_change(SIZE, seed))
    white = change_pixels(painted(box), change)[0] > 0.75
    rows, columns = torch.nonzero(white, as_tuple=True)
    (kept,) = change_boxes(target(box), SIZE, change)["boxes"].tolist() or [None]
    if kept is None:  # hardly anything is left of it
        scale = SIZE[1] / change.width
        assert len(rows) <= (VISIBLE + 0.1) * scale**2 * (box[2] - box[0]) * (box[3] - box[1])
        return
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert [float(edge) for edge in seen] == pytest.approx(kept, abs=1.0)
    assert 0 <= kept[0] < kept[2] <= SIZE[1]
    assert 0 <= kept[1] < kept[3] <= SIZE[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_box_is_kept_where_a_quarter_of_it_is_left(seed: int) -> None:
    """Against a count of the pixels of a box that the part shown contains, before any resizing."""
    random = np.random.default_rng(1000 + seed)
    corners = random.integers(0, (70, 50), (30, 2))
    sides = random.integers(2, (30, 25), (30, 2))
    boxes = [(x, y, min(x + w, 80), min(y + h, 60)) for (x, y), (w, h) in zip(corners, sides, strict=True)]
    change = draw_change(SIZE, seed)
    shown = np.zeros((200, 200), bool)  # with room for what lies outside of the image
    shown[
        50 + change.top : 50 + change.top + change.height, 50 + change.left : 50 + change.left + change.width
    ] = True
    fractions = [shown[50 + y1 : 50 + y2, 50 + x1 : 50 + x2].mean() for x1, y1, x2, y2 in boxes]
    kept = change_boxes(target(*boxes), SIZE, change)["labels"].tolist()
    clear = [label for label, fraction in enumerate(fractions, 1) if abs(fraction - VISIBLE) > 1e-6]
    assert [label for label in kept if label in clear] == [
        label for label in clear if fractions[label - 1] > VISIBLE
    ]


def test_boxes_below_a_pixel_go_with_their_labels_and_nothing_else_changes() -> None:
    smaller = Change(-15, -20, 120, 160, 1.0, 1.0, 1.0)  # half the size
    before = target((10, 10, 11, 30), (0, 0, 80, 60), (5, 5, 7, 7))
    after = change_boxes(before, SIZE, smaller)
    assert after["boxes"].tolist() == [[10, 7.5, 50, 37.5], [12.5, 10, 13.5, 11]]
    assert after["labels"].tolist() == [2, 3]
    assert after["image_id"] == 7
    assert len(before["boxes"]) == 3
    empty = change_boxes(target(), SIZE, smaller)
    assert empty["boxes"].shape == (0, 4)
    assert empty["labels"].shape == (0,)


def test_what_lies_outside_of_the_image_is_gray() -> None:
    image = torch.ones(3, *SIZE)
    small = change_pixels(image, Change(0, 0, 120, 160, 1.0, 1.0, 1.0))
    assert torch.equal(small[:, :29, :39], torch.ones(3, 29, 39))
    assert torch.equal(small[:, 31:, 41:], torch.full((3, 29, 39), GRAY))
    assert torch.equal(image, torch.ones(3, *SIZE))


def test_colors_change_by_their_formulas_and_stay_between_0_and_1() -> None:
    torch.manual_seed(0)
    image = 0.3 + 0.4 * torch.rand(3, *SIZE)
    same = Change(0, 0, *SIZE, 1.0, 1.0, 1.0)
    gray = (torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1) * image).sum(0, keepdim=True)
    expected = {
        "brightness": 1.2 * image,
        "contrast": 1.2 * image - 0.2 * gray.mean(),
        "saturation": 1.2 * image - 0.2 * gray,
    }
    for name, value in expected.items():
        changed = change_pixels(image, same._replace(**{name: 1.2}))
        torch.testing.assert_close(changed, value.clamp(0, 1), rtol=0, atol=1e-3)
    assert torch.equal(
        change_pixels(torch.ones(3, *SIZE), same._replace(brightness=1.3)), torch.ones(3, *SIZE)
    )


def test_a_seed_repeats_and_seeds_cover_the_limits() -> None:
    drawn = [draw_change(SIZE, seed) for seed in range(2000)]
    assert drawn == [draw_change(SIZE, seed) for seed in range(2000)]
    scales = [SIZE[1] / change.width for change in drawn]
    assert min(scales) == pytest.approx(SCALES[0], abs=0.02)
    assert max(scales) == pytest.approx(SCALES[1], abs=0.03)
    assert np.mean(np.log(scales)) == pytest.approx(np.mean(np.log(SCALES)), abs=0.02)
    for change in drawn:  # the part lies within the image, or the image within the part
        for start, side, whole in ((change.top, change.height, 60), (change.left, change.width, 80)):
            assert min(0, whole - side) <= start <= max(0, whole - side)
        assert all(1 - COLORS <= factor <= 1 + COLORS for factor in change[4:])
        assert math.isclose(change.height / change.width, 60 / 80, rel_tol=0.03)
