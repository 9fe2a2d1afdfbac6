"""Which layout a folder has, with each of the readers in turn, and the refusals."""

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.fields import DataPaths, SplitPaths
from autoprune.layouts.find import LAYOUTS, find_layout, find_source, stamp
from autoprune.layouts.source import UNDIVIDED

from .conftest import CLASSES, check, coco, picture, refused, some_boxes, voc_xml, write_json, yolo_line


def make_coco(folder, split, names, boxes):
    write_json(folder / f"annotations/instances_{split}.json", coco(names, boxes))
    for name, box in zip(names, boxes, strict=True):
        picture(folder / "images", name, box)


def make_yolo(folder, split, names, boxes):
    for number, (name, box) in enumerate(zip(names, boxes, strict=True)):
        picture(folder / f"{split}/images", name, box)
        (folder / f"{split}/labels").mkdir(exist_ok=True)
        (folder / f"{split}/labels/{name[:-4]}.txt").write_text(yolo_line((number + 1) % 2, box))
    (folder / "data.yaml").write_text(f"train: train/images\nval: val/images\nnames: {list(CLASSES)}\n")


def make_voc(folder, split, names, boxes):
    for number, (name, box) in enumerate(zip(names, boxes, strict=True)):
        picture(folder / "JPEGImages", name, box)
        (folder / "Annotations").mkdir(exist_ok=True)
        text = voc_xml(name, box, CLASSES[(number + 1) % 2])
        (folder / f"Annotations/{name[:-4]}.xml").write_text(text)
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(name[:-4] for name in names))


MAKERS = (make_coco, make_yolo, make_voc)


@pytest.fixture
def sets(tmp_path):
    """The same six pictures in each layout."""
    for maker in MAKERS:
        for seed, split in enumerate(("train", "val")):
            names = [f"{split}{number}.png" for number in range(3)]
            maker(tmp_path / maker.__name__, split, names, some_boxes(3, seed))
    return [tmp_path / maker.__name__ for maker in MAKERS]


def test_the_same_pictures_are_the_same_data_in_each_layout(sets):
    assert len(sets) == len(LAYOUTS)
    for split in ("train", "val"):
        opened = [open_data(folder, split, strict=True) for folder in sets]
        first = opened[0]
        for other in opened:
            check(other, 3)
            assert other.categories == first.categories
            for index in range(3):
                (image, target), (expected, expected_target) = other.get(index), first.get(index)
                assert (image == expected).all()
                assert (target["boxes"] - expected_target["boxes"]).abs().max() < 1e-4
                assert target["labels"].tolist() == expected_target["labels"].tolist()


def test_any_two_layouts_in_one_folder_are_named(sets, tmp_path):
    names = {find_layout(folder).name for folder in sets}
    assert names == {"COCO", "YOLO", "Pascal VOC"}
    for maker in MAKERS:
        maker(tmp_path / "all", "train", ["a.png"], some_boxes(1))
        maker(tmp_path / "all", "val", ["b.png"], some_boxes(1))
    message = refused(tmp_path / "all")
    assert all(name in message for name in names)
    assert "--data (YAML: data)" in message
    for place in ("annotations", "data.yaml"):
        check(open_data(tmp_path / "all" / place, "val"), 1)


def test_folders_and_files_without_a_layout_are_refused(tmp_path):
    assert "no data folder" in refused(tmp_path / "lost")
    assert "no annotations/instances_val.json, and no other layout" in refused(tmp_path)
    (tmp_path / "pictures.zip").write_text("")
    assert "neither a folder, a COCO .json file nor a YOLO data.yaml" in refused(tmp_path / "pictures.zip")


def test_a_file_changes_its_stamp(sets):
    for folder in sets:
        source = find_source(folder, "train")
        before = stamp(source)
        assert stamp(find_source(folder, "train")) == before
        for file in [*folder.rglob("*.txt"), *folder.rglob("*.xml"), *folder.rglob("*.json")]:
            file.write_text(file.read_text() + "\n")
        assert stamp(source) != before


def test_explicit_paths_have_their_own_splits(sets):
    paths = SplitPaths(annotations=sets[0] / "annotations/instances_val.json", images=sets[0] / "images")
    data = DataPaths(train=paths, val=paths)
    with pytest.raises(DataError, match="the YAML field data has its own split val; omit --val-fraction"):
        find_source(data, "train", 0.2)
    with pytest.raises(DataError, match="the splits train, val, and no 'test'"):
        find_source(data, "test")


def test_splits_that_are_not_there_name_those_that_are(sets, tmp_path):
    assert "has no split 'minival'" in refused(sets[1], "minival")
    assert "it has train, val" in refused(sets[1], "minival")
    file = sets[0] / "annotations/instances_val.json"
    assert find_layout(file).splits.keys() == {UNDIVIDED}
    assert "give --split all, or --val-fraction 0.2" in refused(file, "test")
