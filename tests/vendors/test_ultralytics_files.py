"""Checkpoints of Ultralytics, read without it and without running code."""

import io
import os
import pickle

import pytest
import torch
from rich.console import Console
from torch import nn

from autoprune import progress
from autoprune.detectors import load_dense, save_state
from autoprune.detectors.class_names import class_names, header_of, names_held, names_in
from autoprune.errors import ModelError
from tests.vendors.ultralytics_models import make_lively

ultralytics = pytest.importorskip("ultralytics")
from autoprune.vendors import ultralytics as adapter  # noqa: E402
from autoprune.vendors import ultralytics_files as files  # noqa: E402

NAMES = {0: "red", 1: "white", 2: "platelet"}


@pytest.fixture(scope="module")
def trained():
    """A detector with weights that differ from fresh ones, and names."""
    detector = make_lively(
        adapter.build({"yaml": adapter.describe("yolo11n.yaml", {}).arguments["yaml"], "imgsz": 96}, 4)
    )
    detector.vendor.names = NAMES
    return detector


def write(path, detector, half=True, **changes):
    """As the trainer of Ultralytics saves it."""
    model = pickle.loads(pickle.dumps(detector.vendor))
    arguments = {"imgsz": 96, "task": "detect", "data": "cells.yaml"}
    content = {"epoch": 3, "model": None, "ema": model.half() if half else model, "train_args": arguments}
    torch.save({**content, **changes}, path)
    return path


def test_a_checkpoint_gives_architecture_names_size_and_weights(tmp_path, trained):
    path = write(tmp_path / "best.pt", trained)
    described = adapter.describe(str(path), {})
    assert described.num_classes == 4
    assert described.names == {1: "red", 2: "white", 3: "platelet"}
    assert described.arguments["imgsz"] == 96
    model, spec = load_dense(f"ultralytics:{path}", weights=path)
    assert spec.name == "ultralytics:best.pt"
    assert str(tmp_path) not in str(spec.arguments)
    state = model.vendor.state_dict()
    assert all(
        torch.equal(value.half(), state[name].half()) for name, value in trained.vendor.state_dict().items()
    )
    assert model.unwrap().names == NAMES
    path.unlink()
    again = adapter.build(adapter.describe("best.pt", spec.arguments).arguments, spec.num_classes)
    assert {n: v.shape for n, v in again.vendor.state_dict().items()} == {
        n: v.shape for n, v in state.items()
    }


@pytest.mark.parametrize(
    ("imgsz", "side"), [(128, 128), ([96, 96], 96), ((96.0, 96), 96), (96.0, 96), ([64], 64), (None, 640)]
)
def test_the_input_size_of_a_training_is_taken_where_it_is_clear(tmp_path, trained, imgsz, side):
    path = write(tmp_path / "best.pt", trained, train_args={"imgsz": imgsz})
    assert adapter.describe(str(path), {}).arguments["imgsz"] == side


@pytest.mark.parametrize(
    "imgsz", [0, -32, "96", True, 96.5, [96, 128], [], [96, True], float("nan"), 10**6, {"a": 1}]
)
def test_an_input_size_that_is_none_is_refused_and_can_be_given(tmp_path, trained, imgsz):
    path = write(tmp_path / "best.pt", trained, train_args={"imgsz": imgsz})
    with pytest.raises(ModelError) as error:
        adapter.describe(str(path), {})
    message = str(error.value)
    assert message.startswith(f"{path} says imgsz {imgsz!r} of its training")
    assert """--model-arguments '{"imgsz": 640}'""" in message
    assert "\n" not in message
    assert adapter.describe(str(path), {"imgsz": 64}).arguments["imgsz"] == 64


def test_the_names_of_a_pruned_file_are_read_with_its_weights(tmp_path, trained, monkeypatch):
    """Its architecture is of the dense model, so that no dense detector is described by it."""
    monkeypatch.setattr(trained.vendor, "names", NAMES)
    content = files.weights(write(tmp_path / "best.pt", trained))
    assert names_held(content, 4) == {1: "red", 2: "white", 3: "platelet"}


@pytest.mark.parametrize(
    ("names", "read", "said"),
    [
        ({0: "red", 2: "platelet"}, {1: "red", 2: "1", 3: "platelet"}, "names 2 of its 3 classes"),
        ({1: "red", 2: "white", 3: "platelet"}, {}, "not by the indices of its 3 classes: left out"),
    ],
)
def test_names_with_gaps_are_compared_as_far_as_they_go(tmp_path, trained, monkeypatch, names, read, said):
    monkeypatch.setattr(trained.vendor, "names", names)
    path, lines = write(tmp_path / "best.pt", trained), io.StringIO()
    with progress.show(Console(file=lines, width=300)):
        assert adapter.describe(str(path), {}).names == read
    assert f"{path} " in lines.getvalue()
    assert said in lines.getvalue()


def test_names_in_the_weights_come_before_those_of_the_named_detector(tmp_path, trained):
    """Ultralytics and the header of our own file say the order of the classes in the weights."""
    named = write(tmp_path / "best.pt", trained)
    other = pickle.loads(pickle.dumps(trained))
    other.vendor.names = {0: "white", 1: "platelet", 2: "red"}
    weights = [write(tmp_path / "other.pt", other), tmp_path / "other.safetensors"]
    expected = {1: "white", 2: "platelet", 3: "red"}
    save_state(trained, weights[1], metadata=header_of(expected))
    arguments = adapter.describe(str(named), {}).arguments
    for path in weights:
        for model, given in ((f"ultralytics:{named}", {}), ("ultralytics:best.pt", arguments)):
            assert class_names(str(path), model, 4, given) == expected
        assert class_names(str(path), "ultralytics:yolo11n.yaml", 4) == expected
    bare = tmp_path / "bare.pt"
    torch.save(trained.vendor.state_dict(), bare)
    assert class_names(str(bare), f"ultralytics:{named}", 4) == {1: "red", 2: "white", 3: "platelet"}
    assert names_in(str(bare), f"ultralytics:{named}", 4) == {}
    assert class_names(str(bare), "ultralytics:yolo11n.yaml", 4) == {}


def test_other_classes_than_the_architecture_says_are_named_as_such(tmp_path, trained):
    other = pickle.loads(pickle.dumps(trained))
    other.vendor.yaml["nc"] = 5
    path = write(tmp_path / "best.pt", other)
    with pytest.raises(
        ModelError, match=r"only the class layers differ, of 3 classes where its yaml says nc 5"
    ):
        adapter.describe(str(path), {})


@pytest.mark.parametrize("change", [{"args": ["x", 3, 2]}, {"args": [-64, 3, 2]}, {"from": 99}])
def test_a_checkpoint_whose_architecture_cannot_be_built_is_named(tmp_path, trained, change):
    other = pickle.loads(pickle.dumps(trained))
    row = other.vendor.yaml["backbone"][1]
    for name, value in change.items():
        row[("from", "repeats", "module", "args").index(name)] = value
    path = write(tmp_path / "best.pt", other)
    with pytest.raises(ModelError) as error:
        load_dense(f"ultralytics:{path}", weights=path)
    assert str(error.value).startswith(f"model ultralytics:{path} can't be made: ")
    assert str(error.value).endswith(f"check {path}")
    assert "\n" not in str(error.value)


def test_the_average_comes_first_as_in_ultralytics(tmp_path, trained):
    other = pickle.loads(pickle.dumps(trained.vendor))
    with torch.no_grad():
        other.model[0].conv.weight.zero_()
    path = write(tmp_path / "last.pt", trained, half=False, model=other)
    state = files.weights(path)["model"]
    assert torch.equal(state["model.0.conv.weight"], trained.vendor.model[0].conv.weight)


def test_a_bare_state_dict_needs_its_architecture(tmp_path, trained):
    path = tmp_path / "state.pt"
    torch.save(trained.vendor.state_dict(), path)
    with pytest.raises(
        ModelError, match=r"weights without their architecture; .*--model ultralytics:yolo11n.yaml"
    ):
        adapter.describe(str(path), {})
    model, _ = load_dense("ultralytics:yolo11n.yaml", {"imgsz": 96}, 4, weights=path)
    assert torch.equal(model.vendor.model[0].conv.weight, trained.vendor.model[0].conv.weight)


def test_the_width_of_class_branches_is_that_of_the_file(tmp_path):
    """Ultralytics keeps the width for 80 classes where it goes on with 3."""
    wide = ultralytics.nn.tasks.DetectionModel("yolo11n.yaml", nc=80, verbose=False)
    narrow = ultralytics.nn.tasks.DetectionModel("yolo11n.yaml", nc=3, verbose=False)
    narrow.load(wide, verbose=False)
    assert narrow.model[-1].cv3[0][-1].in_channels == 80
    path = tmp_path / "tuned.pt"
    torch.save({"model": narrow, "ema": None, "train_args": {"imgsz": 64}}, path)
    model, spec = load_dense(f"ultralytics:{path}", weights=path)
    assert spec.num_classes == 4
    assert torch.equal(model.vendor.model[-1].cv3[0][-1].weight, narrow.model[-1].cv3[0][-1].weight)
    other, spec = load_dense(f"ultralytics:{path}", num_classes=6, weights=path)  # data of five classes
    assert other.vendor.model[-1].cv3[0][-1].weight.shape == (5, 80, 1, 1)
    assert torch.equal(
        other.vendor.model[-1].cv3[0][0][0].conv.weight, narrow.model[-1].cv3[0][0][0].conv.weight
    )


def test_a_pruned_model_is_not_taken_for_a_dense_one(tmp_path, trained):
    pruned = pickle.loads(pickle.dumps(trained.vendor))
    first, norm, second = pruned.model[0].conv, pruned.model[0].bn, pruned.model[1].conv
    first.weight = nn.Parameter(first.weight[:8])
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name)[:8]))
    norm.running_mean, norm.running_var = norm.running_mean[:8], norm.running_var[:8]
    second.weight = nn.Parameter(second.weight[:, :8])
    path = write(tmp_path / "pruned.pt", trained, ema=pruned)
    with pytest.raises(
        ModelError, match=r"pruned.pt holds a pruned model given as dense: `model.0.conv.weight`"
    ):
        adapter.describe(str(path), {})


def test_a_fused_model_is_refused(tmp_path, trained):
    fused = pickle.loads(pickle.dumps(trained.vendor)).fuse(verbose=False)
    with pytest.raises(ModelError, match="is fused"):
        adapter.describe(str(write(tmp_path / "fused.pt", trained, ema=fused)), {})


class Writes:
    """A pickle of it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("where", ["train_args", "ema", "top"])
def test_code_in_a_file_is_refused_by_name_and_not_run(tmp_path, trained, where):
    evil, path = Writes(tmp_path / "made"), tmp_path / "evil.pt"
    if where == "top":
        torch.save(evil, path)
    else:
        write(path, trained, **{where: evil})
    for read in (lambda: adapter.describe(str(path), {}), lambda: adapter.read_weights(path)):
        with pytest.raises(
            ModelError, match=r"evil.pt .* `(posix|nt)\.mkdir`, and code that a file names is not run"
        ):
            read()
    assert not (tmp_path / "made").exists()


def test_methods_and_classes_of_ultralytics_run_nothing(tmp_path, trained, monkeypatch):
    """What stands in for `getattr` and for its classes returns plain data."""
    detector = pickle.loads(pickle.dumps(trained))
    detector.vendor.bound = detector.vendor.model[0].forward  # pickled as a call of getattr
    path = write(tmp_path / "bound.pt", detector)
    monkeypatch.setattr(ultralytics.nn.tasks.DetectionModel, "__setstate__", lambda *_: 1 / 0, raising=False)
    assert len(files.checkpoint(path).state) == len(trained.vendor.state_dict())


def test_other_files_are_refused_in_a_line(tmp_path):
    for content, problem in (
        ({"epoch": 1}, "holds no model"),
        ({"model": None, "ema": None}, "holds no model"),
        ([1, 2], "holds no model"),
    ):
        path = tmp_path / "file.pt"
        torch.save(content, path)
        os.utime(path, ns=(1, len(problem) * 1000 + len(str(content))))
        with pytest.raises(ModelError, match=problem):
            adapter.describe(str(path), {})
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match=r"text.pt holds no weights"):
        adapter.describe(str(tmp_path / "text.pt"), {})
    with pytest.raises(ModelError, match=r"there is no file missing\.pt"):
        adapter.describe("missing.pt", {})
