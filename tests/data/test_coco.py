import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as reference

from autoprune import progress
from autoprune.config import DataPaths, SplitPaths
from autoprune.data import coco, images
from autoprune.data.annotations import read
from autoprune.data.coco import check_same_classes, open_data
from autoprune.detectors import Resize
from autoprune.errors import DataError

Record = dict[str, Any]
ONE = [{"id": 1, "name": "thing"}]
CAT = '{"id": 1, "name": "a"}'


def box(number: int, image: int, bbox: Any = (2, 3, 10, 8), category: int = 1, **more: Any) -> Record:
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def write_set(
    folder: Path,
    annotations: list[Any],
    split: str = "val",
    names: tuple[str, ...] = ("a.png", "b.png"),
    size: tuple[int, int] = (30, 40),
    categories: list[Any] = ONE,
) -> Path:
    """A data set with one picture of noise a name; image ids count from 1."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    height, width = size
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
    records = [
        {"id": number, "file_name": name, "height": height, "width": width}
        for number, name in enumerate(names, 1)
    ]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def edit(folder: Path, change: Any) -> None:
    """Applies ``change`` to the content of the annotation file."""
    file = folder / "annotations/instances_val.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# sizes


@pytest.mark.parametrize("rule", [Resize(192, 256), Resize(800, 1333), Resize(128, 128), Resize(33, 1000)])
def test_resized_size_is_torchvisions_and_its_own_fixed_point(rule):
    transform = GeneralizedRCNNTransform(rule.min_size, rule.max_size, [0.0] * 3, [1.0] * 3).eval()

    def torchvisions(size: tuple[int, int]) -> tuple[int, int]:
        resized, _ = transform.resize(torch.empty((3, *size), device="meta"))
        return (int(resized.shape[1]), int(resized.shape[2]))

    rng, off = np.random.default_rng(0), 0
    sizes = [(480, 640), (427, 640), (640, 427), (5, 90), (333, 500), (50, 50)]
    sizes += [tuple(map(int, rng.integers(8, 1500, 2))) for _ in range(40)]
    for size in sizes:
        mine, first = images.resized_size(size, rule), torchvisions(size)
        assert torchvisions(mine) == mine, "the detector's own resizing must change nothing"
        off += mine != first
        assert max(abs(a - b) for a, b in zip(mine, first, strict=True)) <= 1
    assert off <= 0.2 * len(sizes), "one more pixel only where torchvision's rounding is not stable"


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


def test_fixed_sizes_stretch_and_no_rule_keeps(tmp_path):
    folder = write_set(tmp_path, [box(1, 1, (4, 6, 20, 12))], size=(30, 40))
    stretched = open_data(folder, "val", Resize(fixed=(60, 20)))
    picture, target = stretched.get(0)
    assert tuple(picture.shape) == (3, 60, 20)
    assert target["boxes"].tolist() == [[2, 12, 12, 36]]
    assert open_data(folder, "val").sizes == [(30, 40)] * 2
    assert open_data(folder, "val", Resize(None, None)).sizes == [(30, 40)] * 2


def test_most_common_size(tmp_path):
    folder = write_set(tmp_path, [], names=("a.png", "b.png", "c.png"))
    Image.new("RGB", (50, 20)).save(folder / "images/a.png")
    edit(folder, lambda content: content["images"][0].update(width=50, height=20))
    split = open_data(folder, "val")
    assert split.sizes == [(20, 50), (30, 40), (30, 40)]
    assert split.most_common_size == (30, 40)


# pixels and boxes


def test_pixels_are_pillows_antialiased_bilinear_ones(tmp_path):
    split = open_data(write_set(tmp_path, [box(1, 1)], size=(60, 80)), "val", Resize(30, 40))
    picture, _ = split.get(0)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    expected = reference.pil_to_tensor(Image.fromarray(noise).resize((40, 30), Image.Resampling.BILINEAR))
    assert picture.dtype == torch.uint8
    assert torch.equal(picture, expected)
    floats = torch.from_numpy(noise).permute(2, 0, 1)[None].float()
    other = torch.nn.functional.interpolate(floats, (30, 40), mode="bilinear", antialias=True)[0]
    assert (picture - other).abs().max() <= 1
    batch, _ = split.batch([0])
    torch.testing.assert_close(batch[0], expected.float() / 255)


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


# kinds of images


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode):
    grey = np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[None], 30, 0)
    folder = write_set(tmp_path, [box(1, 1)], names=("a.png",))
    name = "a.jpg" if mode == "CMYK" else "a.png"
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    assert picture.mode == mode
    picture.save(folder / "images" / name)
    edit(folder, lambda content: content["images"][0].update(file_name=name))
    pixels, _ = open_data(folder, "val").get(0)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 30, 40))
    coarse = mode in ("1", "P")  # dithered
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1) if coarse else grey
    assert np.abs(pixels.numpy().astype(int) - expected).max() <= (8 if mode == "CMYK" else 3)


def test_exif_rotation_is_not_applied(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)], names=("a.jpg",))
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 6
    stripes = np.zeros((30, 40, 3), np.uint8)
    stripes[:15] = 255
    Image.fromarray(stripes).save(folder / "images/a.jpg", exif=exif)
    pixels, _ = open_data(folder, "val").get(0)
    assert tuple(pixels.shape) == (3, 30, 40)
    assert pixels[:, :12].min() > 200
    edit(folder, lambda content: content["images"][0].update(height=40, width=30))
    with pytest.raises(DataError, match="its EXIF rotation is not applied; save it upright"):
        open_data(folder, "val")


def test_an_image_cut_short_is_named_when_it_is_read(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)], names=("a.jpg",), size=(200, 200))
    file = folder / "images/a.jpg"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cannot decode .*a\.jpg") as error:
        open_data(folder, "val").get(0)
    one_line(error)


# the cache


def test_images_are_decoded_once_while_they_fit(tmp_path, monkeypatch):
    folder = write_set(tmp_path, [box(1, 1)], names=tuple(f"{k}.png" for k in range(4)))
    decoded: list[str] = []
    real = coco.decode
    monkeypatch.setattr(coco, "decode", lambda path, size: decoded.append(path.name) or real(path, size))
    one = 30 * 40 * 3 / coco.GIB
    for gib, expected in ((1, [1, 1, 1, 1]), (2.5 * one, [1, 1, 3, 3]), (0, [3, 3, 3, 3])):
        decoded.clear()
        split = open_data(folder, "val", cache_gib=gib)
        first = [split.get(index)[0] for index in range(4)]
        for _ in range(2):
            again = split.batch(range(4))[0]
            assert all(torch.equal(a.float() / 255, b) for a, b in zip(first, again, strict=True))
        assert [decoded.count(f"{k}.png") for k in range(4)] == expected


def test_an_image_that_is_asked_for_twice_is_decoded_once(tmp_path, monkeypatch):
    folder = write_set(tmp_path, [box(1, 1)])
    decoded: list[str] = []
    real = coco.decode
    monkeypatch.setattr(coco, "decode", lambda path, size: decoded.append(path.name) or real(path, size))
    a, b, c = open_data(folder, "val", cache_gib=0).batch([1, 0, 1])[0]
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    assert sorted(decoded) == ["a.png", "b.png"]


# labels


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


# layouts


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("instances_val.json", "images"),
        ("instances_val.json", "images/val"),
        ("instances_val.json", "val"),
        ("instances_val2017.json", "val2017"),
        ("instances_val2017.json", "images/val2017"),
        ("instances_val2014.json", "val2014"),
    ],
)
def test_layouts(tmp_path, file, folder):
    made = write_set(tmp_path / "made", [box(1, 1)])
    (tmp_path / "set" / folder).parent.mkdir(parents=True, exist_ok=True)
    (made / "images").rename(tmp_path / "set" / folder)
    (tmp_path / "set/annotations").mkdir()
    (made / "annotations/instances_val.json").rename(tmp_path / "set/annotations" / file)
    assert len(open_data(tmp_path / "set", "val", strict=True)) == 2


def test_explicit_paths(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)])
    paths = SplitPaths(annotations=folder / "annotations/instances_val.json", images=folder / "images")
    data = DataPaths(train=paths, val=paths)
    assert len(open_data(data, "train")) == len(open_data(data, "val")) == 2
    with pytest.raises(DataError, match="no split 'test'"):
        open_data(data, "test")
    lost = DataPaths(train=SplitPaths(annotations=paths.annotations, images=tmp_path / "lost"), val=paths)
    with pytest.raises(DataError, match=r"lost does not exist; check data\.train"):
        open_data(lost, "train")


def test_subfolders_unicode_and_shared_files(tmp_path):
    names = ("Zäune 画像.png", "b.png")
    folder = write_set(
        tmp_path, [box(1, 1), box(2, 2), box(3, 9)], names=names, categories=[{"id": 1, "name": "猫"}]
    )
    (folder / "images/sub").mkdir()
    (folder / "images/b.png").rename(folder / "images/sub/b.png")

    def change(content):
        content["images"][1]["file_name"] = "sub/b.png"
        content["images"].append({"id": 9, "file_name": names[0]})  # no size, and a file that is used already

    edit(folder, change)
    split = open_data(folder, "val", strict=True)
    assert split.categories == {1: "猫"}
    assert split.stored_sizes == [(30, 40)] * 3
    assert torch.equal(split.get(0)[0], split.get(2)[0])


# what can't be used


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (box(7, 1, (2, 3, 0, 5)), "annotation 7 (a.png): its box [2, 3, 0, 5] has no area"),
        (box(7, 1, (2, 3, 5, -1)), "has no area"),
        (box(7, 1, (50, 3, 5, 5)), "lies outside the image (40x30)"),
        (box(7, 1, (-9, 3, 5, 5)), "lies outside the image"),
        (box(7, 1, category=8), "annotation 7 (a.png): its category 8 is unknown"),
        (box(7, 5), "annotation 7 (no image): its image 5 is missing"),
        (box(7, 1, (1, 2, 3)), "is not [x, y, width, height]"),
        (box(7, 1, (1, 2, 3, None)), "is not [x, y, width, height]"),
        (box(7, 1, (1, 2, 3, float("nan"))), "is not [x, y, width, height]"),
        (box(7, 1, ("1", 2, 3, 4)), "is not [x, y, width, height]"),
        ({"id": 7, "image_id": 1, "category_id": 1}, "is not [x, y, width, height]"),
    ],
)
def test_unusable_annotations_are_listed_and_strict_refuses_them(tmp_path, wrong, message):
    folder = write_set(tmp_path, [box(1, 1), wrong, box(2, 2)])
    split = open_data(folder, "val")
    assert len(split.skipped) == 1
    assert message in split.skipped[0]
    assert [len(split.get(index)[1]["labels"]) for index in range(2)] == [1, 1]
    assert len(split.coco.anns) == 2
    with pytest.raises(DataError) as error:
        open_data(folder, "val", strict=True)
    assert message in one_line(error)
    assert "1 entries" in one_line(error)


def test_what_is_left_out_is_said_where_progress_is_shown(tmp_path):
    folder = write_set(tmp_path, [box(k, 1, (0, 0, 0, 0)) for k in range(9)] + [box(10, 1)])
    console = Console(record=True, width=2000, file=open("/dev/null", "w"))  # noqa: SIM115
    with progress.show(console):
        open_data(folder, "val")
    console.file.close()
    text = console.export_text()
    assert "left out 9 entries" in text
    assert "its box [0, 0, 0, 0] has no area" in text
    assert text.count("has no area") == coco.SHOWN


def test_a_missing_image_is_left_out_with_its_boxes_and_strict_names_it(tmp_path):
    folder = write_set(tmp_path, [box(1, 1), box(2, 2), box(3, 2)])
    (folder / "images/b.png").unlink()
    split = open_data(folder, "val")
    assert split.image_ids == [1]
    assert len(split.skipped) == 3
    assert str(folder / "images/b.png") in split.skipped[0]
    with pytest.raises(DataError, match=r"b\.png"):
        open_data(folder, "val", strict=True)
    (folder / "images/a.png").unlink()
    edit(folder, lambda content: None)
    with pytest.raises(DataError, match="none of its 2 images can be used") as error:
        open_data(folder, "val")
    assert str(folder / "images") in one_line(error)


def test_images_that_are_no_images_or_of_another_size_are_left_out(tmp_path):
    folder = write_set(tmp_path, [], names=("a.png", "b.png", "c.png", "d.png"))
    (folder / "images/b.png").write_text("not a picture")
    Image.new("RGB", (20, 20)).save(folder / "images/c.png")
    edit(folder, lambda content: content["images"].append({"id": 1, "file_name": "d.png"}))
    edit(folder, lambda content: content["images"].append({"id": 9}))
    split = open_data(folder, "val")
    assert split.image_ids == [1, 4]
    text = "; ".join(split.skipped)
    assert "no image that can be read" in text
    assert "it is 20x20 pixels, the annotations say 40x30" in text
    assert "its id 1 is taken by a.png" in text
    assert "needs a whole number as id and a file_name" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not in COCO format"),
        ("[1, 2]", "not in COCO format"),
        ("3", "not in COCO format"),
        ("{}", "no list `images`"),
        ('{"images": [], "annotations": {}, "categories": []}', "not in COCO format"),
        ('{"images": {}, "annotations": [], "categories": []}', "not in COCO format"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no images"),
        ('{"images": [], "annotations": [], "categories": [{"id": "1", "name": "a"}]}', "whole number as id"),
        (f'{{"images": [], "annotations": [], "categories": [{CAT}, {CAT}]}}', "two categories"),
        (
            '{"images": [], "annotations": [{"id": 1, "caption": "x"}], "categories": []}',
            "not in COCO format",
        ),
        ('{"images": [{"id": [1]}], "annotations": [], "categories": []}', "not in COCO format"),
        (b"\xff\xfe\x00\x01", "not in COCO format"),
    ],
)
def test_json_that_is_not_coco_is_refused_in_one_line(tmp_path, content, message):
    folder = write_set(tmp_path, [])
    file = folder / "annotations/instances_val.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        open_data(folder, "val")
    assert message in one_line(error)
    assert str(file) in one_line(error)


def test_missing_folders_name_flag_field_and_demo(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half/annotations").mkdir(parents=True)
    (tmp_path / "half/annotations/instances_val.json").write_text("{}")
    for name, message in (
        ("lost", "no data folder"),
        ("empty", "no annotations/instances_val.json"),
        ("half", "neither images/"),
    ):
        with pytest.raises(DataError) as error:
            open_data(tmp_path / name, "val")
        for part in (message, "--data", "YAML: data", "autoprune demo"):
            assert part in one_line(error)


def test_pycocotools_prints_nothing(tmp_path, capsys):
    open_data(write_set(tmp_path, [box(1, 1)]), "val").get(0)
    assert capsys.readouterr() == ("", "")


def test_a_changed_annotation_file_is_read_again(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)])
    file = folder / "annotations/instances_val.json"
    first = read(file, (folder / "images",))
    assert read(file, (folder / "images",)) is first
    edit(folder, lambda content: content["annotations"].clear())
    assert read(file, (folder / "images",)).coco.anns == {}


def test_splits_whose_labels_mean_other_things_are_refused(tmp_path):
    write_set(tmp_path, [box(1, 1)], split="train")
    write_set(
        tmp_path, [box(1, 1)], split="val", categories=[{"id": 1, "name": "thing"}, {"id": 2, "name": "more"}]
    )
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
