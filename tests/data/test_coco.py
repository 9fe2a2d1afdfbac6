"""Images and boxes of a split, as torchvision's detectors take them."""

import pickle
import tempfile

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from autoprune import progress
from autoprune.data import coco
from autoprune.data.coco import absent_classes, check_same_classes, open_data
from autoprune.detectors import Resize
from autoprune.errors import DataError

from .conftest import box, edit, one_line, write_set


def test_a_resized_image_goes_through_the_detectors_transform_unchanged(tmp_path):
    split = open_data(write_set(tmp_path, [box(1, 1)], size=(48, 65)), "val", Resize(24, 30))
    transform = GeneralizedRCNNTransform(24, 30, [0.0] * 3, [1.0] * 3).eval()
    pictures, targets = split.batch([0, 1])
    batch, resized = transform(pictures, targets)
    assert batch.image_sizes == split.sizes
    for row, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
        height, width = picture.shape[1:]
        assert torch.equal(batch.tensors[row, :, :height, :width], picture)
        assert torch.equal(resized[row]["boxes"], target["boxes"])


def test_a_split_at_another_size_is_the_one_opened_at_it_and_shares_the_memory_for_images(tmp_path):
    folder = write_set(tmp_path, [box(1, 1, (4, 6, 20, 12))], size=(40, 40))
    both = 2 * 3 * 30 * 30
    split = open_data(folder, "val", Resize(30, 30), cache_gib=(both + 3 * 20 * 20) / coco.GIB)
    split.batch([0, 1])  # what remains holds one image of the smaller size
    smaller, opened = split.resized(Resize(20, 20)), open_data(folder, "val", Resize(20, 20))
    for index in (0, 1):
        (picture, target), (expected, expected_target) = smaller.get(index), opened.get(index)
        assert torch.equal(picture, expected)
        assert torch.equal(target["boxes"], expected_target["boxes"])
    assert smaller.fingerprint == split.fingerprint == opened.fingerprint
    for file in split.files:
        file.unlink()
    split.batch([0, 1])
    smaller.get(0)
    with pytest.raises(DataError):
        smaller.get(1)


def test_fixed_sizes_stretch_and_no_rule_keeps(tmp_path):
    folder = write_set(tmp_path, [box(1, 1, (4, 6, 20, 12))], size=(30, 40))
    stretched = open_data(folder, "val", Resize(fixed=(60, 20)))
    picture, target = stretched.get(0)
    assert tuple(picture.shape) == (3, 60, 20)
    assert target["boxes"].tolist() == [[2, 12, 12, 36]]
    assert open_data(folder, "val").sizes == [(30, 40)] * 2
    assert open_data(folder, "val", Resize(None, None)).sizes == [(30, 40)] * 2


def test_the_fingerprint_is_of_images_boxes_and_classes_wherever_they_lie(tmp_path):
    one = open_data(write_set(tmp_path / "one", [box(1, 1)]), "val")
    known = one.fingerprint
    for entry in one.coco.dataset["annotations"]:
        entry["ignore"] = 0  # as COCOeval leaves it
    del one.fingerprint
    assert one.fingerprint == known
    assert open_data(write_set(tmp_path / "two", [box(1, 1)]), "val").fingerprint == known
    others = {
        "box": open_data(write_set(tmp_path / "three", [box(1, 1, (2, 2, 9, 9))]), "val"),
        "images": open_data(write_set(tmp_path / "four", [box(1, 1)], names=("a.png",)), "val"),
    }
    pixels = write_set(tmp_path / "five", [box(1, 1)])
    image = pixels / "images/a.png"
    image.write_bytes(image.read_bytes() + b" ")
    others["pixels"] = open_data(pixels, "val")
    edit(tmp_path / "two", lambda content: content["categories"][0].update(name="renamed"))
    others["classes"] = open_data(tmp_path / "two", "val")
    assert len({known, *(split.fingerprint for split in others.values())}) == 5


def test_most_common_size(tmp_path):
    folder = write_set(tmp_path, [], names=("a.png", "b.png", "c.png"))
    Image.new("RGB", (50, 20)).save(folder / "images/a.png")
    edit(folder, lambda content: content["images"][0].update(width=50, height=20))
    split = open_data(folder, "val")
    assert split.sizes == [(20, 50), (30, 40), (30, 40)]
    assert split.most_common_size == (30, 40)


def test_targets_are_scaled_cut_at_the_edges_and_without_crowds(tmp_path):
    boxes = [
        box(1, 1, (-4, 10, 20, 40), category=1, area=3),
        box(2, 2, (1, 1, 4, 4), category=2),
        box(3, 1, (20, 6, 10, 12), category=2, iscrowd=0),
        box(4, 1, (0, 0, 40, 30), category=1, iscrowd=1, segmentation={"counts": [1], "size": [30, 40]}),
    ]
    categories = [{"id": 2, "name": "two"}, {"id": 1, "name": "one"}]
    split = open_data(write_set(tmp_path, boxes, categories=categories), "val", Resize(60, 80))
    _, target = split.get(0)
    assert target["boxes"].tolist() == [[0, 20, 32, 60], [40, 12, 60, 36]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [1, 2]
    assert target["labels"].dtype == torch.int64
    assert target["image_id"] == 1
    assert split.get(1)[1]["labels"].tolist() == [2]
    assert split.skipped == []
    assert split.coco.anns[1]["area"] == 3
    assert split.coco.anns[2]["area"] == 16
    assert split.coco.anns[4]["iscrowd"] == 1


def test_a_flip_mirrors_pixels_and_boxes_together(tmp_path):
    """Paints the box white and looks where the white went."""
    folder = write_set(tmp_path, [box(1, 1, (4, 5, 10, 7)), box(2, 2)])
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[5:12, 4:14] = 255
    Image.fromarray(picture).save(folder / "images/a.png")
    split = open_data(folder, "val")
    (plain, flipped, other), targets = split.batch([0, 0, 1], flip=[False, True, False])
    for pixels, target in zip((plain, flipped), targets, strict=False):
        rows, columns = torch.nonzero(pixels[0] > 0.5, as_tuple=True)
        white = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert target["boxes"].tolist() == [[int(value) for value in white]]
    assert not torch.equal(plain, flipped)
    assert torch.equal(split.batch([1])[0][0], other)
    targets[0]["boxes"].zero_()
    assert split.get(0)[1]["boxes"].sum() > 0, "a batch is the caller's to change"


def test_images_without_annotations_give_empty_targets(tmp_path):
    split = open_data(write_set(tmp_path, [box(1, 1)]), "val")
    _, target = split.get(1)
    assert tuple(target["boxes"].shape) == (0, 4)
    assert tuple(target["labels"].shape) == (0,)
    assert tuple(split.batch([1], flip=[True])[1][0]["boxes"].shape) == (0, 4)


def test_images_are_decoded_once_while_they_fit(tmp_path, monkeypatch):
    folder = write_set(tmp_path, [box(1, 1)], names=tuple(f"{k}.png" for k in range(4)))
    decoded: list[str] = []
    real = coco.decode
    monkeypatch.setattr(coco, "decode", lambda path, *how: decoded.append(path.name) or real(path, *how))
    one = 30 * 40 * 3 / coco.GIB
    for gib, expected in ((1, [1, 1, 1, 1]), (2.5 * one, [1, 1, 3, 3]), (0, [3, 3, 3, 3])):
        decoded.clear()
        split = open_data(folder, "val", cache_gib=gib)
        first = [split.get(index)[0] for index in range(4)]
        for _ in range(2):
            again = split.batch(range(4))[0]
            assert all(torch.equal(a.float() / 255, b) for a, b in zip(first, again, strict=True))
        assert [decoded.count(f"{k}.png") for k in range(4)] == expected


def test_splits_of_one_run_decode_for_each_other_and_those_of_others_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = write_set(tmp_path / "data", [box(1, 1)])
    decoded: list[str] = []
    real = coco.decode
    monkeypatch.setattr(coco, "decode", lambda path, *how: decoded.append(path.name) or real(path, *how))
    alone = open_data(folder, "val", Resize(15, 20))
    one, two, other = (open_data(folder, "val", Resize(15, 20), scope=run) for run in ("x", "x", "y"))
    counts = []
    for split in (one, two, pickle.loads(pickle.dumps(one)), other, one.resized(Resize(12, 16))):
        before = len(decoded)
        split.batch([0, 1])
        counts.append(len(decoded) - before)
    assert counts == [2, 0, 0, 2, 2]
    assert all(torch.equal(two.get(k)[0], alone.get(k)[0]) for k in range(2))


def test_an_image_that_is_asked_for_twice_is_decoded_once(tmp_path, monkeypatch):
    folder = write_set(tmp_path, [box(1, 1)])
    decoded: list[str] = []
    real = coco.decode
    monkeypatch.setattr(coco, "decode", lambda path, *how: decoded.append(path.name) or real(path, *how))
    a, b, c = open_data(folder, "val", cache_gib=0).batch([1, 0, 1])[0]
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    assert sorted(decoded) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 4, 6], [1, 2, 4, 6]),
        ([0, 1, 2], [1, 2, 3]),
        ([5, 900, 17], [1, 3, 2]),
        ([3], [1]),
        ([2], [2]),
    ],
)
def test_labels_are_category_ids_where_those_are_small(tmp_path, ids, labels):
    categories = [{"id": number, "name": f"c{number}"} for number in ids]
    boxes = [box(k, 1, category=number) for k, number in enumerate(ids)]
    split = open_data(write_set(tmp_path, boxes, categories=categories), "val")
    assert split.get(0)[1]["labels"].tolist() == labels
    assert split.categories == {label: f"c{number}" for label, number in zip(labels, ids, strict=True)}
    assert split.category_ids == dict(zip(labels, ids, strict=True))
    assert split.num_classes == max(labels) + 1


def test_cocos_own_categories_need_91_classes(tmp_path):
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    categories = [{"id": number, "name": str(number)} for number in range(1, 91) if number not in gaps]
    assert len(categories) == 80
    assert open_data(write_set(tmp_path, [], categories=categories), "val").num_classes == 91


def test_skipped_entries_are_said_where_progress_is_shown(tmp_path):
    folder = write_set(tmp_path, [box(k, 1, (0, 0, 0, 0)) for k in range(9)] + [box(10, 1)])
    console = Console(record=True, width=2000, file=open("/dev/null", "w"))  # noqa: SIM115
    with progress.show(console):
        open_data(folder, "val")
    console.file.close()
    text = console.export_text()
    assert "skipped 9 entries" in text
    assert "its box [0, 0, 0, 0] has no area" in text
    assert text.count("has no area") == coco.SHOWN


def test_splits_whose_labels_mean_other_things_are_refused(tmp_path):
    write_set(tmp_path, [box(1, 1)], split="train")
    more = [{"id": 1, "name": "thing"}, {"id": 2, "name": "more"}]
    write_set(tmp_path, [box(1, 1), box(2, 1, category=2)], split="val", categories=more)
    train, val = open_data(tmp_path, "train"), open_data(tmp_path, "val")
    check_same_classes(train, open_data(tmp_path, "train"))
    with pytest.raises(DataError, match="train and val list different categories") as error:
        check_same_classes(train, val)
    assert "'more', label 2" in one_line(error)


def test_a_split_travels_to_another_process(tmp_path):
    split = open_data(write_set(tmp_path, [box(1, 1)]), "val", Resize(15, 20))
    again = pickle.loads(pickle.dumps(split))
    assert torch.equal(again.get(0)[0], split.get(0)[0])
    assert again.categories == split.categories


def test_classes_without_a_box_are_named_and_crowds_are_no_boxes(tmp_path):
    categories = [{"id": number, "name": name} for number, name in enumerate("abc", 1)]
    boxes = [box(1, 1, category=1), box(2, 2, category=2), box(3, 1, category=3, iscrowd=1)]
    split = open_data(write_set(tmp_path, boxes, categories=categories), "val")
    assert absent_classes(split) == ["c"]
    assert absent_classes(split, images=1) == ["b", "c"]
