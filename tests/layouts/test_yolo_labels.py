"""Labels that are written in another way than YOLO's are refused; right ones of any kind are not."""

import random

import pytest

from autoprune.errors import DataError
from autoprune.layouts.yolo_labels import LabelReader

from ..detectors.conftest import one_line

NAMES = {0: "cat", 1: "dog", 2: "cow"}
SIZE = (300, 400)


def boxes(count, seed, largest=0.3):
    """Boxes x1, y1, width, height in fractions, within the image; a few touch its border."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        width, height = draw.uniform(0.02, largest), draw.uniform(0.02, largest)
        x, y = draw.uniform(-0.05, 1), draw.uniform(-0.05, 1)
        x, y = min(max(x, 0), 1 - width), min(max(y, 0), 1 - height)
        made.append((x, y, width, height))
    return made


def center(x, y, width, height):
    return x + width / 2, y + height / 2, width, height


def corners(x, y, width, height):
    return x, y, x + width, y + height


def top_left(*box):
    return box


def read(tmp_path, lines):
    reader = LabelReader(tmp_path / "data.yaml", NAMES, False)
    (tmp_path / "a.txt").write_text("\n".join(lines))
    assert reader.read(tmp_path / "a.txt", 1, SIZE) is None
    reader.refuse()
    return reader


def lines_of(made, write, first=0):
    return [" ".join(map(repr, (first + number % 3, *write(*box)))) for number, box in enumerate(made)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("largest", [0.1, 0.3, 0.9])
def test_boxes_in_another_convention(tmp_path, seed, largest):
    made = boxes(400, seed, largest)
    reader = read(tmp_path, lines_of(made, center))
    assert reader.skipped == []
    for annotation, (x, y, width, height) in zip(reader.annotations, made, strict=True):
        assert annotation["bbox"] == pytest.approx([x * 400, y * 300, width * 400, height * 300])
    for write, words, remedy in (
        (corners, "[x1, y1, x2, y2]", "write the center, x2 - x1 and y2 - y1"),
        (top_left, "[x, y, width, height]", "add half of width and height to x and y"),
    ):
        with pytest.raises(DataError) as error:
            read(tmp_path, lines_of(made, write))
        message = one_line(error)
        assert message.startswith(f"{tmp_path}/data.yaml: a line's box looks like {words} ({tmp_path}/a.txt:")
        assert message.endswith(f"YOLO has [x center, y center, width, height]: {remedy}")


@pytest.mark.parametrize("seed", range(6))
def test_right_boxes_that_are_not_clipped_or_few_are_taken(tmp_path, seed):
    draw = random.Random(seed)
    spread = [center(draw.uniform(-0.05, 0.9), draw.uniform(-0.05, 0.9), 0.15, 0.15) for _ in range(200)]
    lines = [f"0 {x!r} {y!r} {w!r} {h!r}" for x, y, w, h in spread]
    assert len(read(tmp_path, lines).annotations) == 200
    large = [f"0 0.5 0.5 {draw.uniform(0.6, 1)!r} {draw.uniform(0.6, 1)!r}" for _ in range(50)]
    assert len(read(tmp_path, large).annotations) == 50
    read(tmp_path, lines_of(boxes(4, seed), corners))


def test_classes_that_count_from_one(tmp_path):
    made = boxes(30, 0)
    with pytest.raises(DataError) as error:
        read(tmp_path, lines_of(made, center, first=1))
    assert "look counted from 1, as 3 is one " in one_line(error)
    assert one_line(error).endswith("YOLO counts the 3 from 0: subtract 1")
    lines = lines_of(made, center, first=1)
    for right in (lines[0::3] + lines[1::3], [*lines, "0 0.5 0.5 0.1 0.1"], lines[2:4]):
        reader = read(tmp_path, right)
        assert len(reader.skipped) == sum(line.startswith("3") for line in right)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("0,0.5,0.5,0.1,0.1", "; separate them by blanks"),
        ("0; 0.5; 0.5; 0.1; 0.1", "; separate them by blanks"),
        ("cat 0.5 0.5 0.1 0.1", "in fractions of the image"),
        ("0 320 240 50 60", "in fractions of the image"),
        ("0 0.5_5 0.5 0.1 0.1", "in fractions of the image"),
        ("0 \u0660.\u0665 0.5 0.1 0.1", "in fractions of the image"),
    ],
)
def test_where_no_line_can_be_read_the_form_is_named(tmp_path, line, remedy):
    with pytest.raises(DataError) as error:
        read(tmp_path, [line, line])
    message = one_line(error)
    assert f"none of the 1 lines of boxes can be used (first {tmp_path}/a.txt:1: " in message
    assert "each is the number of a class, x and y of the center, width and height" in message
    assert message.endswith(remedy)
    reader = read(tmp_path, [line, "0 0.5 0.5 0.1 0.1"])
    assert len(reader.annotations) == len(reader.skipped) == 1


def test_files_without_lines_are_no_problem(tmp_path):
    assert read(tmp_path, []).annotations == []
