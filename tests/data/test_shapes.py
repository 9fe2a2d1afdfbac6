import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoprune.data import shapes
from autoprune.data.shapes import make_shapes
from autoprune.errors import ConfigError, DataError


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_are_coco_and_boxes_lie_inside_the_images(tmp_path):
    folder = make_shapes(tmp_path / "set", seed=1, train=12, val=5, test=3, size=64)
    for split, count in {"train": 12, "val": 5, "test": 3}.items():
        content = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        assert len(content["images"]) == count
        for image in content["images"]:
            with Image.open(folder / "images" / image["file_name"]) as file:
                assert (file.format, file.mode, file.size) == ("JPEG", "RGB", (64, 64))
        numbers = [a["id"] for a in content["annotations"]]
        assert len(set(numbers)) == len(numbers) >= count
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            assert width > 0
            assert height > 0
            assert 0 <= x <= x + width <= 64
            assert 0 <= y <= y + height <= 64
            assert 0 < annotation["area"] <= width * height
    assert len(list((folder / "images").iterdir())) == 20


def test_the_seed_decides_every_byte(tmp_path):
    first = contents(make_shapes(tmp_path / "a", 3, train=6, val=2, size=64))
    assert contents(make_shapes(tmp_path / "b", 3, train=6, val=2, size=64)) == first
    other = contents(make_shapes(tmp_path / "c", 4, train=6, val=2, size=64))
    assert not {h for n, h in other.items() if n.startswith("images")} & set(first.values())


def test_splits_share_no_image(tmp_path):
    folder = make_shapes(tmp_path / "a", 0, train=8, val=8, test=8, size=64)
    assert len({h for n, h in contents(folder).items() if n.startswith("images")}) == 24


def test_a_complete_set_is_left_alone_and_an_incomplete_one_made_again(tmp_path):
    folder = make_shapes(tmp_path / "set", 0, train=4, val=2, size=64)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    make_shapes(folder, 0, train=4, val=2, size=64)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    whole = contents(folder)
    (folder / "images/train_00000.jpg").unlink()
    make_shapes(folder, 0, train=4, val=2, size=64)
    assert contents(folder) == whole
    make_shapes(folder, 0, train=3, val=2, size=64)
    assert len(list((folder / "images").iterdir())) == 5


def test_a_killed_run_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    real, calls = shapes.draw, iter(range(100))

    def killed(rng, size):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(rng, size)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            make_shapes(tmp_path / "set", 0, train=4, val=2, size=64)
    assert list(tmp_path.iterdir()) == []
    make_shapes(tmp_path / "set", 0, train=4, val=2, size=64)
    assert len(list((tmp_path / "set/images").iterdir())) == 6


def test_files_of_others_are_never_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files that autoprune did not make"):
        make_shapes(tmp_path, 0, train=1, val=1)
    with pytest.raises(DataError, match="choose another folder"):
        make_shapes(tmp_path / "mine.txt", 0, train=1, val=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"train": -1, "val": 1}, {"train": 1, "val": 1, "size": 8}])
def test_impossible_numbers_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="cannot make"):
        make_shapes(tmp_path / "set", 0, **wrong)
    assert not (tmp_path / "set").exists()


def test_visible_pixels_are_the_pixels_that_the_object_changed(monkeypatch):
    """Draws without noise, one object after the other, and compares the pictures instead of the masks."""
    real, added = shapes._add_object, []
    tip = 3  # a star's point fades over this many pixels, each covered by less than a half

    def watched(rng, picture, objects):
        before, count = picture.copy(), len(objects)
        real(rng, picture, objects)
        if len(objects) > count:
            added.append(np.abs(picture - before).max(2) > 0)

    monkeypatch.setattr(shapes, "_add_object", watched)
    for number in range(20):
        added.clear()
        _, objects = shapes.draw(np.random.default_rng(number), 128)
        assert len(added) == len(objects)
        for index, thing in enumerate(objects):
            x, y, width, height = shapes.box_of(thing.visible)
            touched = added[index].copy()
            for later in added[index + 1 :]:
                touched &= ~later
            inside = np.zeros_like(touched)
            inside[max(y - tip, 0) : y + height + tip, max(x - tip, 0) : x + width + tip] = True
            assert not (touched & ~inside).any(), "pixels of the object far off its box"
            assert thing.visible[y].any()
            assert thing.visible[y + height - 1].any()
            assert thing.visible[:, x].any()
            assert thing.visible[:, x + width - 1].any()
            assert thing.visible.sum() >= shapes.MIN_VISIBLE * thing.area
        together = np.stack([thing.visible for thing in objects])
        assert together.sum(0).max() <= 1, "every pixel shows one object at most"


def test_box_is_the_smallest_that_holds_all_true_pixels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((9, 13)) < 0.05
        mask[4, 5] = True
        points = [(x, y) for y in range(9) for x in range(13) if mask[y, x]]
        xs, ys = zip(*points, strict=True)
        assert shapes.box_of(mask) == (min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)


def test_objects_vary_in_class_size_and_number():
    drawn = [shapes.draw(np.random.default_rng(number), 128)[1] for number in range(150)]
    assert {thing.label for objects in drawn for thing in objects} == {1, 2, 3, 4, 5}
    assert {len(objects) for objects in drawn} == {1, 2, 3, 4, 5, 6}
    spans = [max(shapes.box_of(thing.visible)[2:]) for objects in drawn for thing in objects]
    assert min(spans) <= 12
    assert 55 <= max(spans) <= 72
    assert any(thing.visible.sum() < 0.8 * thing.area for objects in drawn for thing in objects)
