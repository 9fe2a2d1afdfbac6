"""One policy recovered in full: what is written is what was measured, also after `kill -9`."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import autoprune
from autoprune import progress
from autoprune.config import load_config, make_config
from autoprune.data.evaluate import evaluate
from autoprune.detectors import detector_inputs, load_dense
from autoprune.errors import ConfigError, RunError
from autoprune.recovery import recover_policy as module
from autoprune.recovery.recover import recover
from autoprune.recovery.recover_policy import recover_policy
from autoprune.run.names import (
    CARD_FILE,
    LOSSES_FILE,
    METRICS_FILE,
    RECOVERY_CHECKPOINT_FILE,
    WEIGHTS_FILE,
)
from autoprune.task.learning_rate import recovery_rate
from autoprune.task.pruning_task import load_task

from .conftest import TRAINED_NORMS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recovered(run):
    (result,) = recover(run.run)
    return result


@pytest.fixture(scope="module")
def task(run):
    return load_task(load_config(run.run / "config.yaml"))


@pytest.mark.slow
def test_metrics_are_those_of_the_detector_that_was_written(run, recovered, task):
    metrics = json.loads((recovered.folder / METRICS_FILE).read_text())
    written = autoprune.load(recovered.folder)
    scores = evaluate(written, task.val, batch_size=2)
    assert metrics["metrics"]["map"] == scores.map == recovered.map
    assert metrics["per_class"] == scores.per_class
    dense = evaluate(task.model, task.val, batch_size=2)
    assert metrics["dense"]["metrics"]["map"] == dense.map
    for model, gflops in ((written, metrics["gflops"]), (task.model, metrics["dense"]["gflops"])):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*detector_inputs(metrics["input_size"]))
        assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=1e-12)


def test_the_files_of_a_recovery_are_those_of_the_documentation(recovered):
    assert {path.name for path in recovered.folder.iterdir()} == {
        "policy.yaml",
        "model.safetensors",
        "metrics.json",
        "losses.csv",
        "samples.json",
        "latency.json",
        "MODEL_CARD.md",
    }


def test_the_loss_of_every_step_is_kept(recovered):
    head, *lines = (recovered.folder / LOSSES_FILE).read_text().splitlines()
    assert head == "step,loss"
    assert [int(line.split(",")[0]) for line in lines] == [1, 2]
    assert all(float(line.split(",")[1]) > 0 for line in lines)


def test_the_learning_rate_follows_from_what_the_pruning_cost(recovered):
    metrics = recovered.metrics
    dense = metrics["dense"]["metrics"]["map"]
    assert metrics["settings"]["learning_rate"] is None
    assert metrics["learning_rate"] == recovery_rate(metrics["untrained_map"], dense)
    assert f"learning rate {metrics['learning_rate']:g}" in (recovered.folder / "MODEL_CARD.md").read_text()


def test_a_training_that_makes_it_worse_is_not_kept(copy_run, task):
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=300)):
        (result,) = recover(copy_run(), learning_rate=0.05)
    assert result.map == result.metrics["untrained_map"] > 0.1
    assert result.metrics["kept"] == "untrained"
    assert evaluate(autoprune.load(result.folder), task.val, batch_size=2).map == result.map
    assert f"mAP {100 * result.map:.1f} before the training" in lines.getvalue()
    assert "the weights before the training were kept" in (result.folder / "MODEL_CARD.md").read_text()


def test_a_finished_recovery_is_not_repeated(run, recovered, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_: pytest.fail("it was recovered already"))
    (again,) = recover(run.run)
    assert again.metrics == recovered.metrics


def test_a_recovery_that_was_killed_at_its_card_gets_it_by_the_same_command(copy_run, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    run = copy_run()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_card", kill)
        with pytest.raises(KeyboardInterrupt):
            recover(run)
    (metrics,) = run.rglob(METRICS_FILE)
    before = metrics.read_bytes()
    assert not (metrics.parent / CARD_FILE).exists()
    (finished,) = recover(run)
    assert metrics.read_bytes() == before
    assert (finished.folder / CARD_FILE).exists()
    assert not list(run.rglob(RECOVERY_CHECKPOINT_FILE))


def test_a_broken_file_of_a_recovery_is_named(tmp_path):
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json can't be read .*; delete"):
        module.read_finished(tmp_path, {})


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("model.safetensors", None, "model.safetensors is missing"),
        ("model.safetensors", b"", "model.safetensors holds no weights"),
        ("model.safetensors", "half", "model.safetensors holds no weights"),
        ("model.safetensors", "other", "model.safetensors holds other weights than those"),
        ("policy.yaml", None, "policy.yaml is missing"),
        ("policy.yaml", b"groups: [", "policy.yaml is not valid YAML"),
    ],
)
def test_a_recovery_without_its_detector_is_not_finished(recovered, tmp_path, name, content, problem):
    folder = shutil.copytree(recovered.folder, tmp_path / "copy")
    file, settings = folder / name, recovered.metrics["settings"]
    if content is None:
        file.unlink()
    elif content == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif content == "other":
        save_file({key: value + 1 for key, value in load_file(file).items()}, file)
    else:
        file.write_bytes(content)
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=400)):
        assert module.read_finished(folder, settings) is None
    (line,) = lines.getvalue().splitlines()
    assert f"{folder}/{problem}" in line
    assert line.endswith("it is recovered again")


def test_a_recovery_of_the_version_before_is_read_back_though_it_names_no_data(recovered, tmp_path):
    folder = shutil.copytree(recovered.folder, tmp_path / "copy")
    settings = recovered.metrics["settings"]
    other = {**settings, "validation data": "other"}
    with pytest.raises(
        RunError, match=r"other settings: validation data was .*, now other; delete the folder"
    ):
        module.read_finished(folder, other)
    content = json.loads((folder / METRICS_FILE).read_text())
    del content["model_sha256"], content["settings"]["training data"], content["settings"]["validation data"]
    (folder / METRICS_FILE).write_text(json.dumps(content))
    assert module.read_finished(folder, other).map == recovered.map


def test_other_settings_are_not_passed_off_as_the_same(run, recovered):
    with pytest.raises(RunError, match=r"other settings: steps was 2, now 3; give --steps 2, or delete"):
        recover(run.run, steps=3)


# Waits in the third step; by then a checkpoint of the second one is written.
DRIVER = """
    import json, sys
    from autoprune.recovery import recover, recover_policy
    from autoprune.training.state import TrainingState

    train, advance = recover_policy.train, TrainingState.advance

    def waiting(self, *batch):
        if self.step == 2:
            print("waiting", flush=True)
            sys.stdin.read()
        return advance(self, *batch)

    TrainingState.advance = waiting
    recover_policy.train = lambda *given, **named: train(*given, checkpoint_interval_s=0, **named)
    recover.recover(sys.argv[1], **json.loads(sys.argv[2]))
"""
LONGER = {"steps": 4, "learning_rate": 1e-4}


@pytest.mark.slow
def test_a_recovery_after_kill_9_ends_with_the_same_weights(copy_run):
    killed, whole_run = copy_run("killed"), copy_run("whole")
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(killed), json.dumps(LONGER)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            if process.stdout.readline() != "waiting\n":
                pytest.fail(process.stderr.read())
        finally:
            process.send_signal(signal.SIGKILL)
    assert not list(killed.rglob(METRICS_FILE))
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=200)):
        (resumed,) = recover(killed, **LONGER)
    assert "2 of 4 steps done, resumes from" in lines.getvalue()
    (whole,) = recover(whole_run, **LONGER)
    first, second = (load_file(result.folder / WEIGHTS_FILE) for result in (resumed, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.map == whole.map
    assert whole.metrics["kept"] == "trained"
    assert {path.name for path in resumed.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


def test_frozen_norms_can_be_trained_and_read_back(frozen_run, recwarn):
    point = frozen_run.best
    assert point.policy.model.norm == "frozen"
    (result,) = recover(frozen_run.run, **TRAINED_NORMS)
    assert (result.policy.model.norm, result.policy.keep) == ("batch", point.policy.keep)
    model, dense = autoprune.load(result.folder), frozen_run.run.parent / "dense.safetensors"
    spec = result.policy.model
    before, _ = load_dense(spec.name, spec.arguments, spec.num_classes, spec.norm, dense)
    pruned = result.policy.apply(before)
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 15
    for name in norms:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            assert not torch.equal(
                getattr(model.get_submodule(name), tensor), pruned.state_dict()[f"{name}.{tensor}"]
            )
    assert result.metrics["mparams"] == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6)
    assert result.metrics["gflops"] == point.metrics["gflops"]
    assert not [warning for warning in recwarn if "other dense weights" in str(warning.message)]
    with pytest.raises(RunError, match=r"norm was batch, now frozen; delete the folder"):
        recover(frozen_run.run, learning_rate=1e-3)


def test_a_regrown_policy_is_the_one_that_is_written(run, copy_run, task, tmp_path):
    """Other channels than the trial's, at no more GFLOPs; what is read back is what was recovered."""
    (result,) = recover(copy_run(), regrow_rounds=1)
    assert result.policy.keep != run.best.policy.keep
    assert 0.98 * run.best.metrics["gflops"] <= result.metrics["gflops"] <= run.best.metrics["gflops"]
    assert evaluate(autoprune.load(result.folder), task.val, batch_size=2).map == result.map
    regrowing = replace(task, config=task.config.model_copy(update={"regrow_rounds": 1}))
    with pytest.raises(ConfigError, match="regrow_rounds needs the search space"):
        recover_policy(regrowing, run.best.policy.keep, tmp_path / "alone")


def test_the_latency_at_a_smaller_size_carries_both_sizes(demo_settings, run, tmp_path):
    full_size = load_task(make_config(**{**demo_settings, "steps": 1}, input_sizes=(1.0, 0.75)))
    recovered = recover_policy(
        full_size.at(96), run.best.policy.keep, tmp_path / "small", full_size=full_size
    )
    (row,) = json.loads((recovered.folder / "latency.json").read_text())
    assert row["label"].endswith("batch 1, 128x128, which the detector itself makes 96x96")
    assert row["dense_network_size"] == [128, 128]


class DiedError(Exception):
    """Stands for a machine that is lost."""


@pytest.mark.slow
def test_a_recovery_resumes_where_other_last_digits_are_computed(copy_run, monkeypatch):
    """On another machine, or by another number of threads; the weights in training are those of the file."""
    moved = copy_run("moved")
    train, start, (whole,) = module.train, module.reinitialize, recover(copy_run("whole"), steps=4)

    def die(state):
        if state.step == 3:
            raise DiedError

    def dying(*given, **named):
        return train(*given[:-1], die, checkpoint_interval_s=0, **named)

    with monkeypatch.context() as context:
        context.setattr(module, "train", dying)
        with pytest.raises(DiedError):
            recover(moved, steps=4)

    def other_digits(*given):
        model = start(*given)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 1e-6)
        return model

    monkeypatch.setattr(module, "reinitialize", other_digits)
    monkeypatch.setattr(module, "recovery_rate", lambda *_: 1.5 * whole.metrics["learning_rate"])
    with pytest.raises(RunError, match="is of another run: weight_decay was"):
        recover(moved, steps=4, weight_decay=0.5)
    (resumed,) = recover(moved, steps=4)
    assert resumed.metrics["learning_rate"] == whole.metrics["learning_rate"]
    losses = [(each.folder / LOSSES_FILE).read_text() for each in (resumed, whole)]
    assert losses[0] == losses[1]
