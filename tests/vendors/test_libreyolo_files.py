"""What checkpoints of LibreYOLO say of their classes: names that do not fit are left out, which is said."""

import io
import re

import pytest
import torch
from rich.console import Console

from autoprune import progress
from autoprune.detectors.class_names import class_names
from autoprune.errors import ModelError
from autoprune.vendors import libreyolo as adapter
from tests.vendors.libreyolo_models import NAMES, wrapper


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What LibreYOLO saved of a detector of three classes."""
    path = tmp_path_factory.mktemp("saved") / "cells.pt"
    wrapper("yolox").save(str(path))
    return torch.load(path, weights_only=True)


def described(content, path):
    """The description of a file with this content, and the lines that are said."""
    torch.save(content, path)
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=1000)):
        description = adapter.describe(str(path), {})
    return description, lines.getvalue().splitlines()


@pytest.mark.parametrize(
    "names",
    [["a"], "abc", 5, {0: None}, {"x": "a"}, dict(enumerate("abcde")), {0: "a", 1: "b", 3: "c"}, [1, 2, 3]],
)
def test_names_that_do_not_name_the_classes_are_left_out_and_said(saved, tmp_path, names):
    description, lines = described({**saved, "names": names}, tmp_path / "x.pt")
    assert (description.num_classes, description.names) == (4, {})
    assert len(lines) == 1
    assert f"{tmp_path / 'x.pt'} has names {names!r}" in lines[0]


@pytest.mark.parametrize("names", [NAMES, list(NAMES.values()), {str(n): name for n, name in NAMES.items()}])
def test_names_are_read_in_the_forms_that_mean_them(saved, tmp_path, names):
    description, lines = described({**saved, "names": names}, tmp_path / "x.pt")
    assert description.names == {label + 1: name for label, name in NAMES.items()}
    assert lines == []
    assert class_names(str(tmp_path / "x.pt"), "libreyolo:yolox-n", 4) == description.names


@pytest.mark.parametrize("names", [None, {}, []])
def test_no_names_are_no_mistake(saved, tmp_path, names):
    description, lines = described({**saved, "names": names}, tmp_path / "x.pt")
    assert (description.names, lines) == ({}, [])


def test_images_lie_where_the_weights_were_trained(tmp_path):
    """Official YOLOv9 has them in the middle, LibreYOLO's own files of before 1.6 in the upper left."""
    network = wrapper("yolo9").model
    own = network.state_dict()
    for content, expected in (
        ({"model": own}, "topleft"),
        (own, "topleft"),
        ({"model": own, "letterbox_pad": "center", "model_family": "yolo9"}, "center"),
        ({"model": own, "model_family": "yolo9"}, "topleft"),
        ({re.sub(r"^head\.", "detect.", name): tensor for name, tensor in own.items()}, "center"),
    ):
        description, _ = described(content, tmp_path / "yolo9.pt")
        assert description.arguments["letterbox_pad"] == expected


@pytest.mark.parametrize("classes", [10_000_000, 65_537])
def test_more_classes_than_any_data_has_are_refused(saved, tmp_path, classes):
    torch.save({**saved, "nc": classes}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=rf"nc must be the number of classes, up to 65536, not {classes}"):
        adapter.describe(str(tmp_path / "x.pt"), {})
