import io
import json
import os
import re
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
from safetensors.torch import load_file
from torch import nn

import autoprune
from autoprune import progress
from autoprune.cli.main import main
from autoprune.config import load_config, make_config
from autoprune.data.evaluate import evaluate
from autoprune.detectors import load_dense, save_state, with_norm
from autoprune.errors import ConfigError, RunError
from autoprune.export import largest_difference
from autoprune.graph import prune
from autoprune.policy import Policy
from autoprune.recovery.recover import recover, recover_policy
from autoprune.run.directory import LOSSES_FILE, METRICS_FILE
from autoprune.search.pipeline import search
from autoprune.task.pruning_task import load_task


@pytest.fixture(scope="module")
def run(demo_settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    return search({**demo_settings, "rungs": (0,), "trials": 4, "out": out})


@pytest.fixture(scope="module")
def recovered(run):
    (done,) = recover(run.run)
    return done


def test_the_best_on_the_front_is_recovered(run, recovered):
    assert recovered.folder == run.run / "recovered" / f"trial-{run.best.trial:04d}"
    assert {path.name for path in recovered.folder.iterdir()} == {
        "policy.yaml",
        "model.safetensors",
        "metrics.json",
        "losses.csv",
        "samples.json",
        "latency.json",
        "MODEL_CARD.md",
    }
    assert recovered.policy.keep == run.best.policy.keep


def test_metrics_are_those_of_the_detector_that_was_written(run, recovered, demo_settings):
    metrics = json.loads((recovered.folder / METRICS_FILE).read_text())
    task = load_task(make_config(**demo_settings))
    found = evaluate(autoprune.load(recovered.folder), task.val, batch_size=2)
    assert metrics["metrics"]["map"] == found.map == recovered.map
    assert metrics["per_class"] == found.per_class
    dense = evaluate(task.model, task.val, batch_size=2)
    assert metrics["dense"]["metrics"]["map"] == dense.map
    assert metrics["gflops"] == run.best.metrics["gflops"] < metrics["dense"]["gflops"]


def test_the_loss_of_every_step_is_kept(recovered):
    head, *lines = (recovered.folder / LOSSES_FILE).read_text().splitlines()
    assert head == "step,loss"
    assert [int(line.split(",")[0]) for line in lines] == [1, 2]
    assert all(float(line.split(",")[1]) > 0 for line in lines)


def test_a_training_that_makes_it_worse_is_not_kept(run, demo_settings, tmp_path):
    shutil.copytree(run.run, tmp_path / "run", ignore=shutil.ignore_patterns("recovered"))
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=300)):
        (done,) = recover(tmp_path / "run", learning_rate=0.05)
    assert done.map == done.metrics["untrained_map"] > 0.1
    assert done.metrics["kept"] == "untrained"
    task = load_task(make_config(**demo_settings))
    assert evaluate(autoprune.load(done.folder), task.val, batch_size=2).map == done.map
    assert f"mAP {100 * done.map:.1f} before the training" in lines.getvalue()
    assert "the weights before the training were kept" in (done.folder / "MODEL_CARD.md").read_text()


def test_a_finished_recovery_is_not_repeated(run, recovered, monkeypatch):
    monkeypatch.setattr("autoprune.recovery.recover.train", None)  # would fail if it were called
    (again,) = recover(run.run)
    assert again.metrics == recovered.metrics


def test_other_settings_are_not_passed_off_as_the_same(run, recovered):
    with pytest.raises(RunError, match=r"other settings: steps was 2, now 3; delete the folder"):
        recover(run.run, steps=3)


DRIVER = """
    import json, sys
    from autoprune import recovery
    from autoprune.training import loop
    from autoprune.training.state import TrainingState

    train, advance = loop.train, TrainingState.advance

    def told(self, split):
        loss = advance(self, split)
        print(self.step, flush=True)
        return loss

    TrainingState.advance = told
    recovery.train = lambda *arguments: train(*arguments, checkpoint_interval_s=0)
    recovery.recover(sys.argv[1], **json.loads(sys.argv[2]))
"""
LONGER = {"steps": 4, "reconstruct_images": 2, "learning_rate": 1e-4}


def test_a_recovery_after_kill_9_ends_with_the_same_weights(run, tmp_path):
    """Killed in the third of four steps, in a process of its own."""
    for name in ("killed", "whole"):
        shutil.copytree(run.run, tmp_path / name, ignore=shutil.ignore_patterns("recovered"))
    environment = {**os.environ, "PYTHONPATH": str(Path(autoprune.__file__).parent.parent)}
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path / "killed")]
    command.append(json.dumps(LONGER))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline() != "2\n":
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not list((tmp_path / "killed").rglob(METRICS_FILE))
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=200)):
        (resumed,) = recover(tmp_path / "killed", **LONGER)
    assert re.search("[123] of 4 steps done, resumes from", lines.getvalue())
    (whole,) = recover(tmp_path / "whole", **LONGER)
    first, second = (load_file(done.folder / "model.safetensors") for done in (resumed, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed.map == whole.map
    assert whole.metrics["kept"] == "trained"
    assert {path.name for path in resumed.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}


@pytest.fixture(scope="module")
def frozen_run(demo_settings, tmp_path_factory):
    """A search on weights with frozen norms, as all pretrained ones of torchvision have them."""
    folder = tmp_path_factory.mktemp("frozen")
    model, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    save_state(with_norm(model, "frozen"), folder / "dense.safetensors")
    settings = {**demo_settings, "weights": str(folder / "dense.safetensors")}
    return search({**settings, "rungs": (0,), "trials": 1, "out": folder / "run"})


def test_frozen_norms_can_be_trained_and_read_back(frozen_run, recwarn):
    point = frozen_run.best
    assert point.policy.model.norm == "frozen"
    (done,) = recover(frozen_run.run, norm="train", learning_rate=1e-3)
    assert (done.policy.model.norm, done.policy.keep) == ("batch", point.policy.keep)
    model, dense = autoprune.load(done.folder), frozen_run.run.parent / "dense.safetensors"
    spec = done.policy.model
    before, _ = load_dense(spec.name, spec.arguments, spec.num_classes, spec.norm, dense)
    pruned = done.policy.apply(before)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 15
    for name in norms:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            assert not torch.equal(
                getattr(model.get_submodule(name), tensor), pruned.state_dict()[f"{name}.{tensor}"]
            )
    assert done.metrics["mparams"] == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6)
    assert done.metrics["gflops"] == point.metrics["gflops"]
    assert not [warning for warning in recwarn if "other dense weights" in str(warning.message)]
    with pytest.raises(RunError, match=r"norm was batch, now frozen; delete the folder"):
        recover(frozen_run.run, learning_rate=1e-3)


def test_the_latency_is_measured_in_the_runtime_of_the_run(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    copy = tmp_path / "run"
    shutil.copytree(run.run, copy, ignore=shutil.ignore_patterns("recovered"))
    settings = copy / "config.yaml"
    text = settings.read_text()
    settings.write_text(text.replace("latency_runtime: torch", "latency_runtime: onnxruntime"))
    (done,) = recover(copy, steps=1)
    (row,) = json.loads((done.folder / "latency.json").read_text())
    assert "1 thread, onnxruntime" in row["label"]
    assert "onnxruntime" in (done.folder / "MODEL_CARD.md").read_text()


def test_commands_take_a_detector_whose_norms_were_trained(frozen_run, tmp_path, capsys):
    (done,) = recover(frozen_run.run, norm="train", learning_rate=1e-3)
    dense = frozen_run.run.parent / "dense.safetensors"
    assert main(["apply", str(done.folder), "--weights", str(dense), "--to", str(tmp_path / "applied")]) == 0
    policy = Policy.load(tmp_path / "applied" / "policy.yaml")
    assert policy.weights_sha256 == frozen_run.best.policy.weights_sha256
    # the policy of the search and that of the recovery prune the dense weights alike
    spec = frozen_run.best.policy.model
    model, _ = load_dense(spec.name, spec.arguments, spec.num_classes, spec.norm, dense)
    pair = frozen_run.best.policy.apply(model), autoprune.load(tmp_path / "applied")
    assert 0 < largest_difference(*pair, policy.input_size) < 1e-4
    assert main(["export", str(done.folder), "--to", str(tmp_path / "exported")]) == 0
    assert main(["latency", str(done.folder), "--repeats", "1"]) == 0
    capsys.readouterr()
    assert (
        main(
            [
                "eval",
                str(tmp_path / "exported"),
                "--data",
                str(load_config(frozen_run.run / "config.yaml").data),
                "--batch-size",
                "2",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["metrics"]["map"] == pytest.approx(done.map, abs=1e-6)


@pytest.mark.slow
def test_torchrun_recovers_on_two_processes(frozen_run, tmp_path):
    """Through the command; norms stand still and nothing is distilled, so it equals one process' work."""
    for name in ("one", "two"):
        shutil.copytree(frozen_run.run, tmp_path / name, ignore=shutil.ignore_patterns("recovered"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "autoprune.cli.main", "recover", str(tmp_path / "two"), "--distill", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(autoprune.__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: autoprune export") == 1  # one of them speaks
    (one,) = recover(tmp_path / "one", distill=0.0)
    two = tmp_path / "two" / "recovered" / one.folder.name
    first, second = (load_file(folder / "model.safetensors") for folder in (one.folder, two))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.folder.iterdir()}


def test_trials_off_the_front_can_be_recovered_too(run):
    off = next(r.number for r in run.records if r.number not in [point.trial for point in run.front])
    (done,) = recover(run.run, trials=[off])
    widths = {name: len(kept) for name, kept in done.policy.keep.items()}
    assert widths == {name: width for name, width in run.records[off].widths.items() if name in widths}
    assert done.metrics["gflops"] == run.records[off].metrics["gflops"]


def test_reconstruction_lowers_the_loss_before_any_training(run):
    """On validation images that it did not see, with the statistics of the dense detector."""
    config = load_config(run.run / "config.yaml")
    losses = []
    for images in (0, 8):
        changed = config.model_copy(update={"reconstruct_images": images, "recalibration_images": 0})
        task = load_task(changed)
        groups = task.graph.prunable.items()
        keep = {name: tuple(i for i in range(group.width) if i % 4) for name, group in groups}
        model = task.reinitialize(prune(task.model, task.graph, keep), keep, seed=0).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.no_grad():
            losses.append(sum(model(*task.val.batch(range(6))).values()).item())
    assert losses[1] < 0.6 * losses[0]


def test_a_regrown_policy_is_the_one_that_is_written(run, tmp_path):
    """Other channels than the trial's, at no more GFLOPs; what is read back is what was recovered."""
    shutil.copytree(run.run, tmp_path / "run", ignore=shutil.ignore_patterns("recovered"))
    (done,) = recover(tmp_path / "run", regrow_rounds=1)
    assert done.policy.keep != run.best.policy.keep
    assert 0.98 * run.best.metrics["gflops"] <= done.metrics["gflops"] <= run.best.metrics["gflops"]
    task = load_task(load_config(run.run / "config.yaml"))
    found = evaluate(autoprune.load(done.folder), task.val, batch_size=2)
    assert found.map == done.map
    asked = replace(task, config=task.config.model_copy(update={"regrow_rounds": 1}))
    with pytest.raises(ConfigError, match="regrow_rounds needs the search space"):
        recover_policy(asked, run.best.policy.keep, tmp_path / "alone")


def test_bad_input_is_one_line(run, tmp_path):
    with pytest.raises(RunError, match=r"has no trial 99; `autoprune front"):
        recover(run.run, trials=[99])
    with pytest.raises(RunError, match=r"is not a run directory.*--out of a search"):
        recover(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key `lerning_rate`.*learning_rate"):
        recover(run.run, lerning_rate=1)
