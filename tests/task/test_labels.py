"""Labels against the weights: classes of the head, and names."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from autoprune.config import ModelSpec, make_config
from autoprune.data.coco import open_data
from autoprune.detectors import build, save_state
from autoprune.detectors.class_names import header_of
from autoprune.errors import ConfigError
from autoprune.task.labels import agreed_labels, load_labeled

SMALL = {"min_size": 64, "max_size": 64, "fpn_channels": 32, "returned_layers": [2, 3]}
ROOT = {"id": 0, "name": "cells", "supercategory": "none"}


@pytest.fixture
def make(tmp_path):
    """Weights of a head, and a split with a box of each category but the root."""

    def make(classes, names, root=(), carried=None, **settings):
        categories = [
            *root,
            *({"id": number, "name": name, "supercategory": "cells"} for number, name in names),
        ]
        boxes = [
            {"id": place, "image_id": 1, "category_id": number, "bbox": [1, 1, 9, 9]}
            for place, (number, _) in enumerate(names)
        ]
        (tmp_path / "annotations").mkdir()
        (tmp_path / "images").mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / "images/a.png")
        content = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": boxes,
            "categories": categories,
        }
        (tmp_path / "annotations/instances_train.json").write_text(json.dumps(content))
        spec = ModelSpec(name="retinanet_resnet18_fpn", arguments=SMALL, num_classes=classes)
        file = tmp_path / "model.safetensors"
        save_state(build(spec), file, metadata=header_of(carried or {}))
        config = make_config(
            model=spec.name, model_arguments=SMALL, weights=str(file), data=tmp_path, **settings
        )
        return SimpleNamespace(config=config, split=open_data(tmp_path, "train"), spec=spec)

    return make


def labels(case):
    return load_labeled(case.config, case.split)[2]


def test_the_head_decides_whether_an_unused_root_has_a_label(make):
    case = make(4, [(1, "a"), (2, "b"), (3, "c")], [ROOT])
    assert labels(case) == {1: "a", 2: "b", 3: "c"}
    assert agreed_labels(case.split, case.config, 5) == {1: "cells", 2: "a", 3: "b", 4: "c"}
    assert agreed_labels(case.split, case.config, 91) == {1: "a", 2: "b", 3: "c"}


def test_a_category_zero_without_boxes_has_no_label_where_the_head_has_none_for_it(make):
    case = make(4, [(1, "a"), (2, "b"), (3, "c")], [{"id": 0, "name": "other"}])
    assert case.split.num_classes == 5
    assert labels(case) == {1: "a", 2: "b", 3: "c"}


def test_a_head_with_more_classes_keeps_them(make):
    case = make(7, [(1, "a")])
    model, spec, names = load_labeled(case.config, case.split)
    assert (spec.num_classes, names) == (7, {1: "a"})
    assert model.head.classification_head.num_classes == 7


def test_a_head_with_fewer_classes_is_refused_and_labels_from_zero_are_shown(make):
    case = make(2, [(1, "a"), (2, "b")])
    with pytest.raises(ConfigError, match=r"num_classes: 2 is too few.*give --labels a=0,b=1$"):
        labels(case)
    given = case.config.model_copy(update={"labels": {"a": 0, "b": 1}})
    assert load_labeled(given, case.split)[2] == {0: "a", 1: "b"}


@pytest.mark.parametrize("ids", [range(2, 7), range(2, 11, 2), (1, 2, 3, 4, 9)])
def test_ids_that_fit_the_head_by_position_alone_are_read_so(make, ids):
    case = make(6, list(zip(ids, "abcde", strict=True)))
    assert labels(case) == {1: "a", 2: "b", 3: "c", 4: "d", 5: "e"}
    assert (
        case.split.relabeled(labels(case)).labels_line == "labels: 1 a, 2 b, 3 c, 4 d, 5 e"
    )  # as commands print it
    assert agreed_labels(case.split, case.config, 91) == dict(zip(ids, "abcde", strict=True))
    for classes in (5, 4):
        with pytest.raises(ConfigError, match="is too few") as error:
            agreed_labels(case.split, case.config, classes)
        assert "count from 0" not in str(error.value)


def test_an_unused_root_with_the_last_id_has_no_label_where_the_head_has_none_for_it(make):
    root = {"id": 3, "name": "cells", "supercategory": "none"}
    case = make(3, [(1, "a"), (2, "b")], [root])
    assert labels(case) == {1: "a", 2: "b"}
    line = case.split.relabeled(labels(case)).labels_line
    assert line == 'labels: 1 a, 2 b; category 3 "cells" has no boxes and is left out'
    assert agreed_labels(case.split, case.config, 4) == {1: "a", 2: "b", 3: "cells"}


def test_a_head_without_a_class_for_what_has_no_boxes_is_told(make):
    case = make(3, [(1, "a"), (2, "b")], [{"id": 3, "name": "c", "supercategory": "cells"}])
    with pytest.raises(
        ConfigError, match=r"if categories without boxes are no classes, give --labels a=1,b=2$"
    ):
        labels(case)


def test_labels_from_zero_are_shown_only_where_they_fit_exactly(make):
    case = make(3, [(1, "a"), (2, "b"), (3, "c"), (4, "d")])
    for classes, shown in ((4, True), (3, False), (2, False)):
        with pytest.raises(ConfigError, match=f"num_classes: {classes} is too few") as error:
            agreed_labels(case.split, case.config, classes)
        assert ("give --labels a=0,b=1,c=2,d=3" in str(error.value)) == shown


def test_a_number_of_classes_that_the_weights_do_not_have_is_refused(make):
    case = make(4, [(1, "a")], num_classes=9)
    with pytest.raises(ConfigError, match="has 4 classes with the background, not 9; omit --num-classes"):
        labels(case)


@pytest.mark.parametrize("names", [[(1, "b"), (2, "a")], [(0, "a"), (1, "b")], [(7, "B "), (9, "A")]])
def test_names_in_the_weights_decide(make, names):
    got = labels(make(4, names, carried={1: "a", 3: "b"}))
    assert {label: name.strip().lower() for label, name in got.items()} == {1: "a", 3: "b"}


def test_names_that_are_only_partly_in_the_weights_are_refused(make):
    case = make(4, [(1, "a"), (2, "z")], carried={1: "a", 2: "b"})
    with pytest.raises(ConfigError, match="the weights have no class 'z', they name 1 a, 2 b; give --labels"):
        labels(case)
    given = case.config.model_copy(update={"labels": {"a": 1, "z": 2}})
    assert load_labeled(given, case.split)[2] == {1: "a", 2: "z"}


def test_other_names_altogether_leave_the_ids(make):
    assert labels(make(4, [(1, "x"), (2, "y")], carried={1: "a", 2: "b"})) == {1: "x", 2: "y"}


@pytest.mark.parametrize("name", ["train", "val"])
def test_labels_of_unknown_categories_are_refused_on_every_split(make, name):
    case = make(4, [(1, "a"), (2, "b")], labels={"a": 1, "B": 9, "b": 2})
    annotations = case.config.data / "annotations"
    content = json.loads((annotations / "instances_train.json").read_text())
    content["categories"] = content["categories"][:1]
    content["annotations"] = content["annotations"][:1]
    (annotations / "instances_val.json").write_text(json.dumps(content))
    split = open_data(case.config.data, name)
    with pytest.raises(ConfigError, match="labels: the data has no category 'B'; it has a, b"):
        agreed_labels(split, case.config, 4)
    given = case.config.model_copy(update={"labels": {"a": 2, "b": 1}})  # val does not list b
    assert agreed_labels(split, given, 4) == {2: "a", 1: "b"}


def test_labels_of_the_detectors_policy_are_taken(make):
    case = make(4, [(1, "a"), (2, "b")])
    assert agreed_labels(case.split, case.config, 4, {2: "a", 1: "b"}) == {2: "a", 1: "b"}
