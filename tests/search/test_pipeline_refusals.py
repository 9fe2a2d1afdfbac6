"""Searches that are refused, or interrupted before they begin: one line, and nothing is left behind."""

import errno
import io
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
from rich.console import Console
from torchvision.models.detection import RetinaNet

from autoprune import progress
from autoprune.config import load_config
from autoprune.detectors import load_state, save_state
from autoprune.engines.ray_setup import no_cluster
from autoprune.errors import BudgetError, ConfigError, DataError, ModelError, ResumableError, RunError
from autoprune.files import unwritable, write_text
from autoprune.search import checks, pipeline
from autoprune.search.pipeline import search

from .conftest import outcome


def test_another_configuration_is_refused_and_its_fields_named(finished_run, demo_settings):
    settings = {**demo_settings, "out": finished_run.run, "trials": 9}
    with pytest.raises(RunError, match=r"another configuration: budget_gflops was .*70%.*, now .*50%"):
        search({**settings, "budget_gflops": "50%"})
    with pytest.raises(RunError, match="seed was 0, now 3"):
        search({**settings, "seed": 3})


def test_other_weights_under_the_same_name_are_refused(demo_settings, tmp_path):
    weights = tmp_path / "dense.safetensors"
    state = load_state(Path(demo_settings["weights"]))
    save_state(state, weights)
    settings = {**demo_settings, "criterion": "l2", "weights": str(weights), "out": tmp_path / "run"}
    settings |= {"rungs": (0,), "trials": 1}
    search(settings)
    state["backbone.body.conv1.weight"] += 0.01
    save_state(state, weights)
    with pytest.raises(RunError, match=r"dense\.safetensors is not what .*run was made from; give the dense"):
        search({**settings, "trials": 2})


def test_other_data_under_the_same_path_is_refused(demo_settings, tmp_path):
    data = Path(shutil.copytree(demo_settings["data"], tmp_path / "data"))
    settings = {**demo_settings, "criterion": "l2", "data": data, "out": tmp_path / "run"}
    settings |= {"rungs": (0,), "trials": 1}
    search(settings)
    file = data / "annotations" / "instances_val.json"
    text = file.read_text()
    file.write_text(json.dumps({**json.loads(text), "annotations": json.loads(text)["annotations"][1:]}))
    with pytest.raises(
        RunError,
        match=r"the data in .*data is not .*: validation data: 16 boxes before, 15 now; give .*--data",
    ):
        search({**settings, "trials": 2})
    file.write_text(json.dumps(json.loads(text), indent=1))  # the same in other words
    assert len(search({**settings, "trials": 2}).records) == 2


def test_data_and_weights_that_were_moved_are_the_same_search(
    demo_settings, finished_run, copied_run, tmp_path
):
    data = Path(shutil.copytree(demo_settings["data"], tmp_path / "moved"))
    weights = str(shutil.copy(demo_settings["weights"], tmp_path / "dense2.safetensors"))
    scores = (copied_run / "importance.safetensors").read_bytes()
    moved = {**demo_settings, "data": data, "weights": weights, "out": copied_run, "trials": 9}
    assert outcome(search(moved)) == outcome(finished_run)
    image = next((data / "images").rglob("*.*"))
    image.write_bytes(image.read_bytes() + b" ")  # as another image of the same size
    with pytest.raises(
        RunError, match=rf"data in {data} is not what {copied_run} was made from: .* other files, .*--data"
    ):
        search({**moved, "trials": 10})
    assert (copied_run / "importance.safetensors").read_bytes() == scores


def test_validation_images_without_boxes_are_refused_before_the_run_begins(demo_settings, tmp_path):
    data = Path(shutil.copytree(demo_settings["data"], tmp_path / "data"))
    file = data / "annotations" / "instances_val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(DataError, match="val has no boxes in any of its 6 images; add them"):
        search({**demo_settings, "data": data, "proxy_images": 3, "out": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_a_search_without_its_study_is_not_begun_anew(copied_run, damage):
    config = load_config(copied_run / "config.yaml", out=copied_run)
    damage(copied_run / "study.journal")
    before = {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")}
    with pytest.raises(
        RunError, match=r"holds results .*front\.csv.*, but its study is missing or empty; .*another --out"
    ):
        search(config)
    assert {path: path.stat().st_mtime_ns for path in copied_run.rglob("*")} == before


def test_data_that_cannot_be_read_is_named_not_the_run(demo_settings, tmp_path, monkeypatch):
    def refuse(config):
        raise PermissionError(13, "Permission denied", str(demo_settings["data"]))

    monkeypatch.setattr(checks, "load_task", refuse)
    with pytest.raises(RunError, match=rf"cannot use {demo_settings['data']}: Permission denied; check"):
        search({**demo_settings, "out": tmp_path / "run"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": Path("/nowhere")}, DataError, r"--data FOLDER \(YAML: data\).*`autoprune demo`"),
        ({"weights": None}, ConfigError, r"--weights FILE \(YAML: weights\).*`autoprune demo`"),
        ({"weights": "gone.safetensors"}, ConfigError, r"no weights at gone.safetensors.*--weights"),
        ({"budget_gflops": "0.1%"}, BudgetError, r"smallest in this search space is \d"),
        ({"budget_gflops": "100"}, BudgetError, r"prunes nothing"),
        ({"budget_gflops": "many"}, BudgetError, r"is not a number"),
        ({"batch_size": 9}, ConfigError, r"9 is more than the 8 training images; give 8 or less"),
        ({"storage": ""}, ConfigError, r"`storage`: is empty; give a value, or omit it"),
        ({"storage": "ok.db"}, RunError, r"--storage ok\.db .* is no SQLAlchemy URL; give sqlite:///ok\.db$"),
        ({"storage": "sqlite://"}, RunError, r"keeps the study in memory.*; give a file"),
        ({"storage": "sqlite:///:memory:"}, RunError, r"keeps the study in memory"),
        ({"storage": "nosuch://x"}, RunError, r"cannot open the storage nosuch://x: .*; check --storage"),
        ({"storage": "sqlite:////nowhere/x.db"}, RunError, r"cannot open the storage sqlite.*unable to open"),
        ({"budgt_gflops": "50"}, ConfigError, r"unknown key `budgt_gflops`.*budget_gflops"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(demo_settings, tmp_path, changes, error, message):
    settings = {**demo_settings, "trials": 9, "out": tmp_path / "runs" / "new", **changes}
    with pytest.raises(error, match=message) as raised:
        search({name: value for name, value in settings.items() if value is not None})
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_after_the_scores_and_curves_leaves_neither(demo_settings, tmp_path, monkeypatch):
    def refuse(task, run, file):
        for file in (run.importance_file, run.curves_file):
            write_text(file, "written")
        raise BudgetError("no policy meets the budget")

    monkeypatch.setattr(pipeline, "_score", refuse)
    with pytest.raises(BudgetError):
        search({**demo_settings, "out": tmp_path / "run"})
    assert list(tmp_path.iterdir()) == []


def test_empty_blocks_are_taken_beside_a_space_that_has_some(demo_settings, l2_space, tmp_path):
    settings = {**demo_settings, "criterion": "l2", "space": l2_space, "out": tmp_path / "run"}
    settings |= {"rungs": (0,), "trials": 1}
    with pytest.raises(ConfigError, match=r"no group has max_ratio: 1\.0; .*give --no-empty-blocks"):
        search({**settings, "empty_blocks": True})
    assert not (tmp_path / "run").exists()
    lines = l2_space.read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if "layer1.0.conv1" in line)
    lines[place] = re.sub(r"max_ratio: [0-9.]+", "max_ratio: 1.0", lines[place])
    l2_space.write_text("\n".join(lines))
    search({**settings, "empty_blocks": True})
    again = {name: value for name, value in settings.items() if name != "space"}  # the run's own
    assert len(search({**again, "empty_blocks": True, "trials": 2}).records) == 2


def test_a_space_file_that_was_edited_is_of_another_run(demo_settings, l2_space, tmp_path):
    settings = {**demo_settings, "criterion": "l2", "space": l2_space, "out": tmp_path / "run"}
    settings |= {"rungs": (0,), "trials": 1}
    search(settings)
    l2_space.write_text(l2_space.read_text().replace("round_to: 8", "round_to: 4"))
    with pytest.raises(RunError, match=r"run/space\.yaml differs from .*/space\.yaml; choose another --out"):
        search(settings)


def test_a_cluster_that_is_not_there_is_told_before_any_work(demo_settings, tmp_path, monkeypatch):
    pytest.importorskip("autoprune.engines.ray", reason="pip install 'ray[tune]'")
    monkeypatch.setattr(checks, "load_task", None)  # calling it would be another error
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*free.getsockname())
    settings = {
        **demo_settings,
        "engine": "ray",
        "address": address,
        "storage": f"sqlite:///{tmp_path}/new.db",
    }
    with pytest.raises(RunError, match=f"no Ray cluster at {address}: .*refused; start one with `ray start"):
        search({**settings, "out": tmp_path / "run"})
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_is_not_installed_is_told_before_any_work(demo_settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(checks, "load_task", None)  # calling it would be another error
    settings = {**demo_settings, "latency_runtime": "openvino", "budget_latency_ms": "60%"}
    with pytest.raises(
        ConfigError, match=r"openvino can't be imported .* `pip install 'autoprune\[openvino\]'`"
    ):
        search({**settings, "out": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("step", "said", "left"),
    [
        ("_score", "nothing is kept; the same command starts from the beginning", []),
        (
            "make_plan",
            "the scores of the channels are kept in {}, and the same command takes them",
            ["importance.safetensors"],
        ),
    ],
)
def test_an_interrupt_before_the_first_trial_says_what_is_kept(
    demo_settings, tmp_path, monkeypatch, step, said, left
):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    monkeypatch.setattr(pipeline, step, interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        search({**demo_settings, "criterion": "l1", "out": run})
    assert str(stopped.value).startswith("no trial was begun")
    assert str(stopped.value).endswith(said.format(run / "importance.safetensors"))
    assert run.exists() is bool(left)
    assert [path.name for path in run.glob("*")] == left


@pytest.mark.parametrize(
    ("failure", "left"),
    [
        (ResumableError("the disk is full"), ["importance.safetensors"]),
        (unwritable(Path("curves.json"), OSError(errno.ENOSPC, "No space left")), ["importance.safetensors"]),
        (no_cluster("10.0.0.1:6379", ConnectionError("refused")), ["importance.safetensors"]),
        (RunError("the study is of another run"), []),
    ],
)
def test_scores_outlast_what_the_same_command_can_get_past(
    demo_settings, tmp_path, monkeypatch, failure, left
):
    def fail(*arguments):
        raise failure

    run = tmp_path / "run"
    monkeypatch.setattr(pipeline, "make_plan", fail)
    said = io.StringIO()
    with progress.show(Console(file=said, width=500)), pytest.raises(RunError) as raised:
        search({**demo_settings, "criterion": "l1", "out": run})
    assert raised.value is failure
    assert [path.name for path in run.glob("*")] == left
    assert (f"kept in {run / 'importance.safetensors'}" in said.getvalue()) is bool(left)


def test_an_interrupt_after_the_curves_names_them_too(demo_settings, tmp_path, monkeypatch):
    def interrupt(*arguments):
        arguments[-1].curves_file.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "make_plan", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"importance\.safetensors and curves in .*curves\.json, and"):
        search({**demo_settings, "criterion": "l1", "out": tmp_path / "run"})


def test_labels_that_do_not_fit_the_detector_are_refused_before_a_file_is_written(demo_settings, tmp_path):
    data = Path(shutil.copytree(demo_settings["data"], tmp_path / "data"))
    for file in data.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:  # circle, square, triangle, … the other way round
            category["id"] = 6 - category["id"]
        for thing in content["annotations"]:
            thing["category_id"] = 6 - thing["category_id"]
        file.write_text(json.dumps(content))
    settings = {**demo_settings, "criterion": "l2", "data": data, "out": tmp_path / "run"}
    settings |= {"rungs": (0,), "trials": 1}
    right = {"circle": 1, "square": 2, "triangle": 3, "star": 4, "ring": 5}
    with pytest.raises(
        ConfigError, match=r"do not fit the detector: .* give --labels ([a-z=0-9,]+) "
    ) as error:
        search(settings)
    option = str(error.value).partition("give --labels ")[2].split()[0]
    proposed = {name: int(label) for name, label in (pair.split("=") for pair in option.split(","))}
    assert proposed.keys() == right.keys()
    assert sum(proposed[name] == label for name, label in right.items()) >= 3, "of classes with enough boxes"
    assert not (tmp_path / "run" / "config.yaml").exists()
    result = search({**settings, "labels": right})
    assert result.dense["map"] > 0.3
    run = load_config(tmp_path / "run" / "config.yaml")
    assert run.labels == right
    assert all(
        point.policy.labels == {label: name for name, label in right.items()} for point in result.front
    )
    with pytest.raises(RunError, match="another configuration: labels was"):
        search({**settings, "labels": {**right, "circle": 2, "square": 1}})
    assert len(search({**settings, "trials": 2}).records) == 2, "without --labels, with the run's own"


def test_a_detector_that_finds_nothing_and_boxes_that_are_all_crowds_are_refused(demo_settings, tmp_path):
    settings = {**demo_settings, "out": tmp_path / "run", "trials": 1}
    state = load_state(Path(demo_settings["weights"]))
    for name, tensor in state.items():
        if "classification_head.cls_logits" in name:
            tensor.fill_(-9)
    weights = tmp_path / "blind.safetensors"
    save_state(state, weights)
    with pytest.raises(ModelError, match="the detector finds nothing on 6 images with boxes of val"):
        search({**settings, "weights": str(weights)})
    data = Path(shutil.copytree(demo_settings["data"], tmp_path / "data"))
    file = data / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    for thing in content["annotations"]:
        thing["iscrowd"] = "true"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="are crowds"):
        search({**settings, "data": data})
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_proxies_are_checked_on_data_and_weights_that_were_moved(checked_run, demo_settings, tmp_path):
    """The run's own settings name places where nothing is left."""
    run = Path(shutil.copytree(checked_run, tmp_path / "run"))
    (run / "proxies.json").unlink()
    file = run / "config.yaml"
    text = file.read_text()
    for name in ("data", "weights"):
        assert f"\n{name}: {demo_settings[name]}\n" in text
        text = text.replace(f"\n{name}: {demo_settings[name]}\n", f"\n{name}: /gone/{name}\n")
    file.write_text(text)
    data = shutil.copytree(demo_settings["data"], tmp_path / "moved")
    weights = shutil.copy(demo_settings["weights"], tmp_path / "moved.safetensors")
    search(load_config(file, out=run, data=data, weights=str(weights), check_proxies=4))
    check = json.loads((run / "proxies.json").read_text())
    assert len(check["trials"]) == 4


def test_a_detector_without_losses_is_refused_where_trials_train_it(demo_settings, tmp_path, monkeypatch):
    """As a segmentation model, whose losses need masks: each trial would fail, one after another."""

    def without_masks(*_):
        raise KeyError("masks")

    monkeypatch.setattr(RetinaNet, "compute_loss", without_masks)
    settings = {**demo_settings, "criterion": "l2", "trials": 1, "out": tmp_path / "run"}
    with pytest.raises(
        ModelError, match=r"fails as model\(images, targets\) in training mode: KeyError: 'masks'"
    ):
        search({**settings, "rungs": (0, 1)})
    assert not (tmp_path / "run").exists()
    assert [record.state for record in search({**settings, "rungs": (0,)}).records] == ["complete"]
