"""Settings that were not given: the run's own where they decide what it is, else those of the command."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from autoprune import progress
from autoprune.config import MAY_CHANGE, Config, make_config
from autoprune.errors import RunError
from autoprune.run.directory import RunDirectory
from autoprune.run.resume import say_own, search_settings, training_settings
from autoprune.training import TrainSettings
from autoprune.training.checkpoint import Checkpoint

OWN = {
    "model": "fcos_resnet18_fpn", "model_arguments": {"min_size": 64}, "num_classes": 7, "weights": "w",
    "input_size": (64, 96), "budget_gflops": ("50%",), "criterion": "l1", "space": Path("/nowhere/s.yaml"),
    "storage": "postgresql://me:secret@host/db", "trials": 7, "rungs": (3,), "learning_rate": 3e-4,
    "clip_norm": 10.0, "seed": 9, "threads": 3, "device": "cpu", "engine": "ray", "confirm": 1, "track": (),
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A run directory that was begun with `OWN`."""
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(make_config(out=directory.path, **OWN), {})
    return directory


def test_a_setting_that_was_not_given_is_the_runs_own_if_it_decides_what_the_run_is(run):
    settings = search_settings(make_config(out=run.path), run)
    own = {**OWN, "storage": "postgresql://me:***@host/db"}
    for name, field in Config.model_fields.items():
        default = run.path if name == "out" else field.default
        assert getattr(settings, name) == (default if name in MAY_CHANGE else own.get(name, default)), name


def test_what_was_given_stays_and_is_refused_if_it_differs(run):
    given = Config(out=run.path, clip_norm=1.0, learning_rate=None, seed=9)  # the first two are defaults
    settings = search_settings(given, run)
    assert (settings.clip_norm, settings.learning_rate, settings.rungs) == (1.0, None, (3,))
    with pytest.raises(RunError, match=r": learning_rate was 0\.0003, now None, clip_norm was 10\.0, now 1"):
        run.check(settings)
    run.check(search_settings(Config(out=run.path, seed=9), run))


def test_what_something_else_filled_in_was_not_given(run):
    filled = Config(out=run.path, criterion="l2", input_size=(8, 8))
    settings = search_settings(filled, run, given={"out", "criterion"})
    assert (settings.criterion, settings.input_size) == ("l2", (64, 96))


def test_the_weights_are_those_of_the_runs_own_file_where_its_model_names_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("best.pt", "other.pt"):
        (tmp_path / name).touch()
    run = RunDirectory(tmp_path / "run")
    run.write_config(make_config(out=run.path, model="ultralytics:best.pt"), {})
    monkeypatch.chdir(run.path)
    settings = search_settings(make_config(out=run.path), run)
    assert settings.weights == str(tmp_path / "best.pt")
    run.check(settings)
    given = make_config(out=run.path, weights="../other.pt")
    assert search_settings(given, run).weights == "../other.pt"
    other = RunDirectory(tmp_path / "other")  # its weights are another file than its model names
    other.write_config(make_config(out=other.path, model="ultralytics:../best.pt", weights="../other.pt"), {})
    assert search_settings(make_config(out=other.path), other).weights is None


def test_a_new_run_has_the_settings_of_the_command(tmp_path):
    config = make_config(out=tmp_path / "new")
    assert search_settings(config, RunDirectory(config.out)) is config
    assert training_settings(config, tmp_path / "new" / "checkpoint.safetensors") is config


def test_own_settings_are_named_without_passwords(run):
    def said(config):
        lines = io.StringIO()
        with progress.show(Console(file=lines, width=1000)):
            say_own(config, search_settings(config, run), run.path)
        return lines.getvalue()

    line = said(make_config(**{"out": run.path, **OWN, "clip_norm": None, "storage": None, "trials": 9}))
    storage = "storage 'postgresql://me:***@host/db'"
    own = f"{run.path} keeps its own {storage}, clip_norm 10.0;"
    assert line == f"{own} for other settings, choose another --out\n"
    assert said(make_config(**{"out": run.path, **OWN})) == ""


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_training_takes_what_was_not_given_from_its_checkpoint(tmp_path, precision):
    file = tmp_path / "checkpoint.safetensors"
    own = {"steps": 7, "learning_rate": 3e-4, "clip_norm": 10.0, "batch_size": 3, "seed": 5}
    begun = TrainSettings.from_config(make_config(**own, precision=precision))
    Checkpoint(begun.__dict__, step=2, losses=[1.0, 1.0], tensors={"a": torch.zeros(1)}).save(file)
    resumed = training_settings(make_config(threads=2), file)
    assert TrainSettings.from_config(resumed) == begun
    assert resumed.threads == 2
    given = training_settings(make_config(clip_norm=1.0, precision="float32"), file)
    assert (given.clip_norm, given.precision, given.steps) == (1.0, "float32", 7)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"steps": -1}, r"`steps`: .*; delete the file"),
        ({"steps": "many"}, r"`steps`: .*; delete the file"),
        (None, "cannot read the checkpoint .*; delete it"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, content, problem):
    file = tmp_path / "checkpoint.safetensors"
    Checkpoint(content or {}, step=0, losses=[], tensors={"a": torch.zeros(1)}).save(file)
    if content is None:
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(RunError, match=problem) as raised:
        training_settings(make_config(), file)
    assert str(file) in str(raised.value)
