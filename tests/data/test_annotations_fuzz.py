"""Annotation files of any content: never a traceback, never an image or a box lost without being counted.

`AUTOPRUNE_FUZZ=2000 pytest tests/data/test_annotations_fuzz.py -n 0` tries more of them.
"""

import itertools
import json
import os

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from autoprune.data.coco import absent_classes, open_data
from autoprune.detectors import Resize
from autoprune.errors import DataError
from autoprune.fields import DataPaths, SplitPaths

EXAMPLES = int(os.environ.get("AUTOPRUNE_FUZZ", "100"))
MISSING = object()
ODD = st.sampled_from(
    [
        None, True, False, "", " ", "0", "1", "-1", "1.0", "01", "a-1", "wide", "false", "\ud800\n", [], {},
        [1], {"id": 1}, 0, -1, 1, 2, 2.5, 1.0, 1e-7, 1e-45, 39.9999999, 1e30, 1e308, 10**400, 2**60,
        float("nan"), float("inf"), MISSING,
    ]
)  # fmt: skip
SOME_ID = st.sampled_from([1, 2, 3, "1", "2", 1.0, 2.0, "a-1", 0])
NUMBERS = st.one_of(st.floats(-10, 60), st.integers(-10, 60), st.integers(0, 40).map(str), ODD)
BOXES = st.one_of(
    st.tuples(st.integers(-5, 45), st.integers(-5, 35), st.integers(1, 30), st.integers(1, 30)).map(list),
    st.lists(NUMBERS.filter(lambda each: each is not MISSING), min_size=3, max_size=5),
    ODD,
)
SEGMENTATIONS = st.one_of(
    st.lists(st.lists(st.one_of(st.integers(-5, 45), st.just("3"), st.none()), max_size=8), max_size=3),
    st.fixed_dictionaries({"size": st.just([30, 40]), "counts": st.lists(st.integers(-1, 400), max_size=5)}),
    st.fixed_dictionaries({"size": st.just([30, 40]), "counts": st.text("0PQ1ao~", max_size=6)}),
    ODD,
)
FILES = st.sampled_from(["a.png", "b.png", "images\\a.png", "/data/upload/1/0a1b2c3d-b.png", "lost.png"])


def records(**fields):
    """A list of records; each field is now and then odd or missing."""
    record = st.fixed_dictionaries({name: st.one_of(kind, kind, kind, ODD) for name, kind in fields.items()})
    plain = record.map(lambda each: {key: value for key, value in each.items() if value is not MISSING})
    return st.lists(
        st.one_of(plain, plain, plain, plain, ODD.filter(lambda each: each is not MISSING)), max_size=6
    )


CONTENTS = st.fixed_dictionaries(
    {
        "categories": st.one_of(
            st.just([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]),
            records(id=SOME_ID, name=st.sampled_from("abc"), supercategory=st.sampled_from(["none", "a"])),
        ),
        "images": st.one_of(
            st.just([{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]),
            records(id=SOME_ID, file_name=FILES, width=st.just(40), height=st.sampled_from([30, "30", -1])),
        ),
        "annotations": records(
            id=SOME_ID,
            image_id=SOME_ID,
            category_id=SOME_ID,
            bbox=BOXES,
            segmentation=SEGMENTATIONS,
            area=NUMBERS,
            iscrowd=st.sampled_from([0, 1, "0", "false"]),
        ),
    }
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two images, and numbers for files, so that none is read from the cache."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(folder / "images" / name)
    return folder, itertools.count()


def opened(data):
    """The split, or the one line that says why there is none."""
    try:
        return open_data(data, "val", Resize(20, 27))
    except DataError as error:
        return str(error)


def noted(split, start):
    """How many a note counts."""
    return sum(int(note.split(": ")[1].split(",")[0]) for note in split.notes if note.startswith(start))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=CONTENTS, encoding=ENCODINGS)
def test_nothing_is_lost_and_nothing_but_a_data_error_is_raised(place, content, encoding):
    folder, numbers = place
    file = folder / f"{next(numbers)}.json"
    file.write_bytes(json.dumps(content).encode(encoding))
    paths = SplitPaths(annotations=file, images=folder / "images")
    split = opened(DataPaths(train=paths, val=paths))
    file.unlink()
    event("refused" if isinstance(split, str) else "read")
    if isinstance(split, str):
        assert split.isprintable()
        return
    assert all(line.isprintable() for line in split.skipped)
    of_annotations = [line for line in split.skipped if line.startswith("annotation")]
    of_images = [line for line in split.skipped if line.startswith("image ")]
    assert len(of_annotations) + len(of_images) == len(split.skipped)
    boxes_twice, images_twice = noted(split, "boxes listed twice"), noted(split, "images listed twice")
    assert len(split.coco.anns) + len(of_annotations) + boxes_twice == len(content["annotations"])
    assert len(split) + len(of_images) + images_twice == len(content["images"])
    count = 0
    for flip in (False, True):
        for target in split.batch(range(len(split)), flip=[flip] * len(split))[1]:
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
            assert set(target["labels"].tolist()) <= set(split.categories)
            count += len(target["boxes"])
    crowds = sum(thing["iscrowd"] for thing in split.coco.anns.values())
    assert count == 2 * (len(split.coco.anns) - crowds)
    assert all(0 < thing["area"] <= 1e10 for thing in split.coco.anns.values())
    assert split.labels_line.isprintable()
    assert len(absent_classes(split)) <= len(split.categories)
    assert len(split.fingerprint) == 64


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(st.binary(max_size=40), st.text('{}[]":,ae1 ', max_size=30).map(str.encode)))
def test_bytes_that_are_no_annotations(place, content):
    folder, numbers = place
    file = folder / f"{next(numbers)}.json"
    file.write_bytes(content)
    paths = SplitPaths(annotations=file, images=folder / "images")
    try:
        with pytest.raises(DataError) as error:
            open_data(DataPaths(train=paths, val=paths), "train")
    finally:
        file.unlink()
    assert str(error.value).isprintable()
