"""Boxes in another convention than COCO's are refused; odd but right ones are not."""

import random
from pathlib import Path

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.records.convention import CENTER, CORNERS, TOP_LEFT, Convention

from ..data.conftest import box, one_line, write_set

WIDTH, HEIGHT = 40, 30
IMAGE = {"width": WIDTH, "height": HEIGHT}


def boxes(count, seed=0):
    """Boxes x, y, width, height within the image."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        x1, x2 = sorted(draw.sample(range(WIDTH + 1), 2))
        y1, y2 = sorted(draw.sample(range(HEIGHT + 1), 2))
        made.append((x1, y1, x2 - x1, y2 - y1))
    return made


def fractions(x, y, width, height):
    return x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT


def corners(x, y, width, height):
    return x, y, x + width, y + height


def center(x, y, width, height):
    return x + width / 2, y + height / 2, width, height


def check(made, image=IMAGE, own=TOP_LEFT):
    convention = Convention(own)
    for number, each in enumerate(made):
        convention.add(tuple(map(float, each)), image, f"annotation {number}")
    convention.refuse(Path("f.json"))


@pytest.mark.parametrize("count", [5, 20, 300])
@pytest.mark.parametrize("seed", range(3))
def test_conventions(count, seed):
    made = boxes(count, seed)
    check(made)
    with pytest.raises(DataError, match=r"f\.json: boxes look like fractions .*annotation 0.*multiply"):
        check([fractions(*each) for each in made])
    with pytest.raises(DataError, match=r"bbox looks like \[x1, y1, x2, y2\]"):
        check([corners(*each) for each in made])


def test_too_few_boxes_tell_nothing():
    check([corners(20, 10, 15, 15)] * 4)
    check([(0.5, 0.5, 0.25, 0.25)] * 4)


def test_right_boxes_that_are_not_clipped():
    made = boxes(100)
    check([*made, *[(30, 20, 35, 25)] * 33])  # a quarter reaches far beyond, and would do as corners
    check([*made[:50], *[(30, 20, 20, 15)] * 50])  # half do, and would not
    check([(-3, -2, 42, 31.5)] * 10)  # by less than a twentieth
    check([(0, 0, 40, 30)] * 10)


def test_a_few_corners_that_are_wrong_themselves_change_nothing():
    made = [corners(*each) for each in boxes(300)]
    with pytest.raises(DataError, match="x1, y1"):
        check([*made, (20, 20, 10, 10), (30, 5, 10, 10)])


def test_small_boxes_and_small_images_are_no_fractions():
    check([(0, 0, 1, 1)] * 9, {"width": 2, "height": 2})
    check([*[(0, 0, 1, 1)] * 9, (5, 5, 2, 2)])


@pytest.mark.parametrize(("write", "message"), [(fractions, "fractions"), (corners, "x1, y1, x2, y2")])
def test_files(tmp_path, write, message):
    made = [box(7 + number, 1, write(*each)) for number, each in enumerate(boxes(12))]
    crowd = box(90, 1, (2, 3, 10, 8), iscrowd=1)
    folder = write_set(tmp_path, [*made, crowd])
    with pytest.raises(DataError, match=message) as error:
        open_data(folder, "val")
    assert "instances_val.json" in one_line(error)
    assert "(a.png)" in one_line(error)
    write_set(tmp_path, [box(7 + number, 1, each) for number, each in enumerate(boxes(12))])
    assert open_data(folder, "val", strict=True).notes == []


WRITINGS = {TOP_LEFT: lambda *each: each, CORNERS: corners, CENTER: center}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("own", WRITINGS)
def test_each_form_is_told_from_the_others(own, seed):
    made = boxes(300, seed)
    for form, write in WRITINGS.items():
        written = [write(*each) for each in made]
        if form is own:
            check(written, own=own)
            continue
        with pytest.raises(DataError) as error:
            check(written, own=own)
        assert f"like {form.words} (annotation " in one_line(error)


def test_right_boxes_that_touch_or_cross_one_side_are_no_centers():
    draw = random.Random(1)
    made = [(draw.uniform(20, 36), draw.uniform(0, 20), 8, 8) for _ in range(100)]  # not clipped at the right
    check([*made, *[(0, draw.uniform(0, 20), 8, 8) for _ in range(3)]])


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("own", WRITINGS)
def test_right_boxes_at_one_border_that_are_not_clipped_are_taken(own, seed):
    draw = random.Random(seed)
    x, y, spread = draw.choice([0.1, 0.9]), draw.choice([0.1, 0.5, 0.9]), draw.uniform(0.02, 0.1)
    made = []
    for _ in range(draw.choice([20, 200])):
        width, height = (draw.uniform(0.02, 0.4) * side for side in (WIDTH, HEIGHT))
        left, top = draw.gauss(x, spread) * WIDTH - width / 2, draw.gauss(y, spread) * HEIGHT - height / 2
        made.append(WRITINGS[own](left, top, width, height))
    check(made, own=own)
