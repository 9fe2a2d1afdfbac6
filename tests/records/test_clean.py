"""Categories, images and annotations, one record at a time."""

from pathlib import Path

import pytest
import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from autoprune.data.coco import open_data
from autoprune.detectors import Resize
from autoprune.errors import DataError
from autoprune.records.clean import LARGEST_AREA, ImageList, Notes, read_categories

from ..data.conftest import box, edit, one_line, write_set


def test_notes_count_and_name_the_first():
    notes = Notes()
    for place in ("here", "there"):
        notes.add("boxes turned", place)
    notes.add("areas guessed", "there")
    assert notes.lines() == ("boxes turned: 2, first here", "areas guessed: 1, first there")


def test_categories():
    records = [{"id": "2", "name": "b"}, {"id": 1.0, "name": 7}, {"id": 2, "name": "b"}]
    categories, ids = read_categories(Path("f"), records)
    assert {number: record["name"] for number, record in categories.items()} == {2: "b", 1: "7"}
    assert ids.number("1") == 1
    for wrong, message in (
        ([{"id": 1}], "needs an id and a name"),
        ([{"id": None, "name": "a"}], "needs an id and a name"),
        ([3], "needs an id and a name"),
        ([{"id": 1, "name": "a"}, {"id": "1", "name": "b"}], "two categories have the id 1, 'a' and 'b'"),
        ([], "no categories"),
    ):
        with pytest.raises(DataError, match=message):
            read_categories(Path("f"), wrong)


def test_images_without_an_id_a_name_or_a_readable_size_are_skipped():
    skipped: list[str] = []
    listed = ImageList(
        [
            {"id": "1", "file_name": "a", "width": "40", "height": None},
            {"id": 2, "file_name": "b", "width": "wide"},
            {"id": 3, "file_name": "c", "height": 30.5},
            {"file_name": "d"},
            {"id": 5},
            None,
            {"id": 1, "file_name": "a"},
        ],
        skipped,
    )
    assert listed.records == {1: {"id": 1, "file_name": "a", "width": 40}}
    assert [line.partition(":")[2] for line in skipped[:2]] == [
        ' its width "wide" is no number of pixels',
        " its height 30.5 is no number of pixels",
    ]
    assert len(skipped) == 6
    assert not listed.twice, "the same image twice is one"


def test_two_images_with_one_id_are_refused_where_boxes_belong_to_it(tmp_path):
    folder = write_set(tmp_path, [box(1, 2)])
    edit(folder, lambda content: content["images"][1].update(id=1))
    assert open_data(folder, "val").image_ids == [1]
    edit(folder, lambda content: content["annotations"][0].update(image_id=1))
    with pytest.raises(DataError, match=r"a\.png and b\.png have the same id"):
        open_data(folder, "val")


@pytest.mark.parametrize(
    "given", [-1, 0, "-1", None, "", "wide", float("nan"), LARGEST_AREA * 2, [], "1e999"]
)
def test_areas_that_are_not_given_are_those_of_the_boxes(tmp_path, given):
    split = open_data(write_set(tmp_path, [box(1, 1, (2, 3, 10, 8), area=given)]), "val", strict=True)
    assert split.coco.anns[1]["area"] == 80


def test_areas_that_are_given_stay_as_they_are(tmp_path):
    areas = (3, 2.5, "4.5")
    boxes = [box(number, 1, (number, 3, 10, 8), area=area) for number, area in enumerate(areas, 1)]
    split = open_data(write_set(tmp_path, boxes), "val", strict=True)
    areas = [split.coco.anns[number]["area"] for number in (1, 2, 3)]
    assert areas == [3, 2.5, 4.5]
    assert type(areas[0]) is int, "the fingerprint of older runs"


def test_an_area_is_never_beyond_what_cocoeval_counts(tmp_path):
    split = open_data(write_set(tmp_path, [box(1, 1, (-1e200, -1e200, 2e200, 2e200))]), "val", strict=True)
    assert split.coco.anns[1]["area"] == 30 * 40


SLIVERS = [
    (639.9999999, 10, 5, 40),
    (300.2, 200.1, 1e-6, 30),
    (300.2, 200.1, 30, 1e-6),
    (-5, 10, 5.0000001, 40),
    (10, 479.99999999, 40, 5),
    (1e-9, 1e-9, 1e-7, 1e-7),
    (0, 100, 1e-45, 3),
]


@pytest.mark.parametrize("sliver", SLIVERS)
def test_a_box_that_is_empty_in_training_is_left_out_with_its_id(tmp_path, sliver):
    boxes = [box(1, 1, (100, 50, 40, 30)), box(77, 1, sliver)]
    split = open_data(write_set(tmp_path, boxes, size=(480, 640)), "val", Resize(192, 256))
    assert len(split.skipped) == 1
    assert "annotation 77 (a.png): its box" in split.skipped[0]
    assert "empty in training" in split.skipped[0]
    assert len(split.get(0)[1]["boxes"]) == 1


def narrowest(side: int) -> float:
    return side * 2**-21


@pytest.mark.parametrize(
    "rule", [Resize(192, 256), Resize(97, 131), Resize(800, 1333), Resize(fixed=(64, 1000))]
)
def test_torchvision_takes_every_box_that_is_kept_at_any_size_and_mirrored(tmp_path, rule):
    height, width = 479, 641
    xs, ys = narrowest(width) * 1.001, narrowest(height) * 1.001
    boxes = [
        box(number, 1, corners)
        for number, corners in enumerate(
            (
                (0, 0, xs, ys),
                (width - xs, height - ys, xs, ys),
                (1e-7, 1e-7, xs, 40),
                (width / 3, height / 3, xs, ys),
                (width - 2 * xs, 5, xs, ys),
                (-5, -5, 5 + xs, 5 + ys),
            ),
            1,
        )
    ]
    split = open_data(write_set(tmp_path, boxes, size=(height, width), names=("a.png",)), "val", rule)
    kept = len(split.coco.anns)
    assert kept >= 5
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    side = max(split.sizes[0])
    model = RetinaNet(backbone, num_classes=2, min_size=min(split.sizes[0]), max_size=side).train()
    for flip in (False, True):
        pictures, targets = split.batch([0], flip=[flip])
        corners = targets[0]["boxes"]
        assert len(corners) == kept
        assert (corners[:, 2:] > corners[:, :2]).all()
        if side < 300:
            assert all(torch.isfinite(loss) for loss in model(pictures, targets).values())


def test_boxes_of_every_writing_are_the_same(tmp_path):
    polygon = [[2, 3, 12, 3, 12, 11, 2, 11]]
    writings = [
        {"bbox": [2, 3, 10, 8]},
        {"bbox": ["2", "3.0", "10", "8"]},
        {"bbox": "[2, 3, 10, 8]"},
        {"segmentation": polygon},
        {"segmentation": polygon, "bbox": None},
        {"segmentation": polygon, "bbox": [0, 0, 0, 0]},
        {"segmentation": polygon, "bbox": []},
    ]
    records = [
        {"id": number, "image_id": number, "category_id": 1, **writing}
        for number, writing in enumerate(writings, 1)
    ]
    names = tuple(f"{number}.png" for number in range(len(writings)))
    split = open_data(write_set(tmp_path, records, names=names), "val", strict=True)
    for number in range(len(writings)):
        assert split.get(number)[1]["boxes"].tolist() == [[2, 3, 12, 11]]


def test_a_box_that_is_wrong_is_not_replaced_by_the_polygon(tmp_path):
    record = {**box(1, 1, (2, 3, float("nan"), 8)), "segmentation": [[2, 3, 12, 3, 12, 11]]}
    split = open_data(write_set(tmp_path, [record, box(2, 1)]), "val")
    assert "is not [x, y, width, height]" in split.skipped[0]


def test_what_is_no_annotation_is_named_by_its_place(tmp_path):
    records = [box(1, 1), 3, None, {"image_id": 1}, {**box(5, 1), "id": None, "iscrowd": "maybe"}]
    split = open_data(write_set(tmp_path, records), "val")
    assert split.skipped == [
        "annotations[1]: 3 is no annotation",
        "annotations[2]: null is no annotation",
        "annotations[3] (a.png): it has no category_id",
        'annotations[4] (a.png): its iscrowd "maybe" is neither 0 nor 1',
    ]
    with pytest.raises(DataError, match="4 entries") as error:
        open_data(tmp_path, "val", strict=True)
    one_line(error)
