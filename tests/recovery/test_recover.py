"""Which policies of a run are recovered, and what is done with them by commands and on several processes."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import autoprune
from autoprune import progress
from autoprune.cli.main import main
from autoprune.config import load_config
from autoprune.data.coco import Split, open_data
from autoprune.data.evaluate import evaluate
from autoprune.detectors import Resize, detector_inputs, load_dense, resize_rule, save_state
from autoprune.errors import ConfigError, DataError, RunError
from autoprune.export import largest_difference
from autoprune.policy import Policy
from autoprune.recovery import recover as module
from autoprune.recovery.recover import recover
from autoprune.run.lock import locked
from autoprune.run.names import LOCK_FILE
from autoprune.run.results import load_result

from .conftest import TRAINED_NORMS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_best_on_the_front_is_recovered(run):
    (recovered,) = recover(run.run)
    best = max(run.front, key=lambda point: point.metrics["map"])
    assert recovered.folder == run.run / "recovered" / f"trial-{best.trial:04d}"
    assert recovered.policy.keep == best.policy.keep
    assert (recovered.metrics["trial"], recovered.metrics["origin"]) == (best.trial, best.origin)


def _drop_group(content):
    name = next(iter(content["groups"]))
    del content["groups"][name]
    return f"group `{name}` has "


def _keep_more(content):
    name, entry = next((n, e) for n, e in content["groups"].items() if e["keep"] != f"0-{e['width'] - 1}")
    entry["keep"] = f"0-{entry['width'] - 1}"
    return f"group `{name}` has {entry['width']} channels after it, and the trial was measured with "


def _resize(content):
    height, width = content["input_size"]
    content["input_size"] = [height // 2, width]
    return f"input size is {height // 2} x {width}, and the trial was measured at {height} x {width};"


def _swap_labels(content):
    first, second, *_ = labels = content["labels"]
    labels[first], labels[second] = labels[second], labels[first]
    return f"label {first} stands for {labels[first]}, and the trial was measured with {labels[second]};"


@pytest.mark.parametrize("change", [_drop_group, _keep_more, _resize, _swap_labels])
def test_a_policy_file_that_is_no_longer_its_trial_is_refused(run, copy_run, change):
    folder = copy_run()
    file = folder / "policies" / run.best.path.name
    content = yaml.safe_load(file.read_text())
    problem = change(content)
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(RunError) as error:
        recover(folder, trials=[run.best.trial], steps=1)
    assert str(error.value).startswith(f"{file} was changed: ")
    assert problem in str(error.value)
    assert "delete the file" in str(error.value)


def test_other_channels_of_a_policy_file_are_recovered_and_named(run, copy_run):
    folder = copy_run()
    file = folder / "policies" / run.best.path.name
    content = yaml.safe_load(file.read_text())
    kept = {name: len(channels) for name, channels in run.best.policy.keep.items()}
    for name, entry in content["groups"].items():
        entry["keep"] = f"0-{kept[name] - 1}" if kept[name] else "none"
    file.write_text(yaml.safe_dump(content))
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=200)):
        (recovered,) = recover(folder, trials=[run.best.trial], steps=1)
    assert recovered.policy.keep == {name: tuple(range(count)) for name, count in kept.items()}
    assert f"{file} keeps other channels than today's scores choose" in lines.getvalue()


def test_a_criterion_that_was_edited_is_refused(copy_run):
    folder = copy_run()
    text = (folder / "config.yaml").read_text()
    own = load_config(folder / "config.yaml").criterion
    (folder / "config.yaml").write_text(text.replace(f"\ncriterion: {own}\n", "\ncriterion: random\n"))
    with pytest.raises(RunError, match=f"says criterion 'random', and the trials .* {own!r}; restore that"):
        recover(folder)


def test_trials_off_the_front_can_be_recovered_too(run):
    off = next(r for r in run.records if r.counts and r.number not in [point.trial for point in run.front])
    (recovered,) = recover(run.run, trials=[off.number])
    widths = {name: len(kept) for name, kept in recovered.policy.keep.items()}
    assert widths == {name: width for name, width in off.widths.items() if name in widths}
    assert recovered.metrics["gflops"] == off.metrics["gflops"]


def test_a_trial_of_a_smaller_input_size_is_recovered_at_it(sized_run, tmp_path):
    """Its figures are those of the written detector on images of any size; the dense one's are at its own."""
    copied = Path(shutil.copytree(sized_run, tmp_path / "run"))
    chosen = next(r for r in load_result(copied).records if r.origin == "dense at 96 px")
    (recovered,) = recover(copied, trials=[chosen.number])
    written, metrics = autoprune.load(recovered.folder), recovered.metrics
    config = load_config(copied / "config.yaml")
    assert resize_rule(written) == Resize(96, 96)
    scores = evaluate(written, open_data(config.data, "val", Resize(96, 96)), batch_size=2)
    assert metrics["metrics"]["map"] == scores.map
    dense, _ = load_dense(config.model, config.model_arguments, weights=config.weights)
    expected = evaluate(dense, open_data(config.data, "val", Resize(128, 128)), batch_size=2)
    assert metrics["dense"]["metrics"]["map"] == expected.map
    for model, gflops in ((written, metrics["gflops"]), (dense, metrics["dense"]["gflops"])):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*detector_inputs((128, 128)))
        assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, abs=1e-12)
    assert recovered.policy.metrics["gflops"] == chosen.metrics["gflops"]
    card = (recovered.folder / "MODEL_CARD.md").read_text()
    assert "resizes images to 96 pixels on the shorter side, 96 at most" in card
    assert "## Cost at 96x96 (the dense detector at 128x128)" in card
    assert recover(copied, trials=[chosen.number])[0].metrics == metrics  # read back, not done again


def test_a_trial_that_is_not_finished_is_no_choice(run):
    """Its recovery would be of a trial that the study does not hold, and the run could not be read."""
    number = run.best.trial
    for state in ("running", "interrupted"):
        records = [
            replace(record, state=state) if record.number == number else record for record in run.records
        ]
        with pytest.raises(RunError, match=f"has no finished trial {number}, only"):
            module._chosen(replace(run, records=records), [number])


def test_bad_input_is_one_line(run, tmp_path):
    with pytest.raises(RunError, match=r"has no finished trial 99, only 0-\d.*; `autoprune front"):
        recover(run.run, trials=[99])
    for path in (None, 3, b"r1"):
        with pytest.raises(ConfigError, match=r"^run is .*; give the path of a run directory"):
            recover(path)
    for trials in (5, [], "5", ["5"], [True]):
        with pytest.raises(ConfigError, match=r"trials must be a list of numbers such as \[3, 5\], not"):
            recover(run.run, trials=trials)
    with pytest.raises(RunError, match=r"is not a run directory.*--out of a search"):
        recover(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key `lerning_rate`.*learning_rate"):
        recover(run.run, lerning_rate=1)


def test_a_policy_whose_file_is_missing_stays_on_the_front_and_is_made_again(run, copy_run):
    folder = copy_run()
    shutil.rmtree(folder / "policies")
    best = load_result(folder).best
    assert (best.trial, best.metrics) == (run.best.trial, run.best.metrics)
    with pytest.raises(RunError, match=rf"{best.path} is missing; the command of the search, repeated"):
        best.policy  # noqa: B018
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=300)):
        (recovered,) = recover(folder)
    assert recovered.policy.keep == run.best.policy.keep
    assert f"{best.path} is missing: the channels are chosen again" in lines.getvalue()


def test_an_empty_front_is_said(copy_run):
    folder = copy_run()
    journal = folder / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    first_trial = next(place for place, line in enumerate(lines) if json.loads(line)["op_code"] == 4)
    journal.write_text("".join(lines[:first_trial]))
    for name in ("policies", "recovered"):
        shutil.rmtree(folder / name, ignore_errors=True)
    with pytest.raises(RunError, match="has nothing on its front yet; let the search finish some trials"):
        recover(folder)


def test_a_trial_that_another_process_recovers_is_refused_and_one_with_too_large_batches(
    run, copy_run, monkeypatch
):
    folder = copy_run()
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("measured before the refusal"))
    trial = folder / "recovered" / f"trial-{run.best.trial:04d}"
    in_use = rf"{trial} is in use by another process .*pid {os.getpid()}\)"
    with locked(trial, LOCK_FILE), pytest.raises(RunError, match=in_use):
        recover(folder)
    with pytest.raises(ConfigError, match="batch_size: 9 is more than the 8 training images; give 8 or less"):
        recover(folder, batch_size=9)
    assert not trial.exists()


def test_a_run_that_was_begun_with_a_larger_batch_is_recovered(run, copy_run, monkeypatch):
    """Version 0.1.0 took any."""
    folder, sizes = copy_run(), []
    monkeypatch.setattr(module, "recover_policy", lambda task, *_, **__: sizes.append(task.config.batch_size))
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("batch_size: 2\n", "batch_size: 9\n"))
    recover(folder)
    with pytest.raises(ConfigError, match="batch_size: 10 is more than the 8 training images"):
        recover(folder, batch_size=10)
    (folder / "recovered" / f"trial-{run.best.trial:04d}").mkdir(parents=True)  # begun, so it was taken then
    recover(folder, batch_size=10)
    assert sizes == [9, 10]


def test_other_data_under_the_same_path_is_refused(copy_run, monkeypatch):
    folder = copy_run()
    monkeypatch.setattr(Split, "fingerprint", "f" * 64)
    with pytest.raises(
        RunError, match=r"the data in .* is not what .* was made from: training data: other files.*--data"
    ):
        recover(folder)


def test_other_dense_weights_are_refused(copy_run, tmp_path):
    folder = copy_run()
    config = load_config(folder / "config.yaml")
    state = load_file(config.weights)
    state["backbone.body.conv1.weight"] += 0.01
    other = tmp_path / "other.safetensors"
    save_state(state, other)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(config.weights, str(other)))
    with pytest.raises(RunError, match=r"other\.safetensors is not what .* was made from"):
        recover(folder)


def test_a_recovery_goes_on_where_data_and_weights_were_moved(copy_run, demo_settings, tmp_path):
    folder, moved = copy_run(), tmp_path / "moved"
    shutil.copytree(demo_settings["data"], moved)
    weights = str(shutil.copy(demo_settings["weights"], tmp_path / "dense2.safetensors"))
    text = (folder / "config.yaml").read_text()
    text = text.replace(f"data: {demo_settings['data']}", "data: /gone")
    (folder / "config.yaml").write_text(text.replace(str(demo_settings["weights"]), "/gone.safetensors"))
    with pytest.raises(DataError, match=r"no data at /gone: give --data FOLDER"):
        recover(folder)
    with pytest.raises(ConfigError, match=r"no weights at /gone.safetensors: give --weights FILE"):
        recover(folder, data=moved)
    scores = (folder / "importance.safetensors").read_bytes()
    assert main(["recover", str(folder), "--data", str(moved), "--weights", weights, "--steps", "1"]) == 0
    assert (folder / "importance.safetensors").read_bytes() == scores
    image = next((moved / "images").rglob("*.*"))
    image.write_bytes(image.read_bytes() + b" ")
    with pytest.raises(
        RunError, match=rf"data in {moved} is not what {folder} was made from: .*; give .*--data"
    ):
        recover(folder, data=moved, weights=weights)


def test_a_lost_space_is_said_with_its_remedy(copy_run):
    folder = copy_run()
    (folder / "space.yaml").unlink()
    with pytest.raises(
        RunError, match=r"space\.yaml is missing; the command of the search, repeated, writes"
    ):
        recover(folder)


def test_the_latency_is_measured_in_the_runtime_of_the_run(copy_run):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    folder = copy_run()
    text = (folder / "config.yaml").read_text()
    changed = text.replace("latency_runtime: torch", "latency_runtime: onnxruntime")
    (folder / "config.yaml").write_text(changed)
    (recovered,) = recover(folder, steps=1)
    (row,) = json.loads((recovered.folder / "latency.json").read_text())
    assert "1 thread, onnxruntime" in row["label"]
    assert "onnxruntime" in (recovered.folder / "MODEL_CARD.md").read_text()


def test_commands_take_a_detector_whose_norms_were_trained(frozen_run, tmp_path, capsys):
    (recovered,) = recover(frozen_run.run, **TRAINED_NORMS)
    dense, applied = frozen_run.run.parent / "dense.safetensors", tmp_path / "applied"
    assert main(["apply", str(recovered.folder), "--weights", str(dense), "--to", str(applied)]) == 0
    policy = Policy.load(applied / "policy.yaml")
    assert policy.weights_sha256 == frozen_run.best.policy.weights_sha256
    # the policy of the search and that of the recovery prune the dense weights to the same detector
    spec = frozen_run.best.policy.model
    model, _ = load_dense(spec.name, spec.arguments, spec.num_classes, spec.norm, dense)
    pair = frozen_run.best.policy.apply(model), autoprune.load(applied)
    assert 0 < largest_difference(*pair, policy.input_size) < 1e-4
    exported, data = tmp_path / "exported", load_config(frozen_run.run / "config.yaml").data
    assert main(["export", str(recovered.folder), "--to", str(exported)]) == 0
    assert main(["latency", str(recovered.folder), "--repeats", "1"]) == 0
    capsys.readouterr()
    assert main(["eval", str(exported), "--data", str(data), "--batch-size", "2", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["metrics"]["map"]
    assert measured == pytest.approx(recovered.map, abs=1e-6)


@pytest.mark.slow
def test_torchrun_recovers_on_two_processes(frozen_run, tmp_path):
    """Through the command; norms stand still and nothing is distilled, so it equals one process' work."""
    for name in ("one", "two"):
        shutil.copytree(frozen_run.run, tmp_path / name, ignore=shutil.ignore_patterns("recovered"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "autoprune", "recover", str(tmp_path / "two"), "--distill", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("next: autoprune export") == 1  # one of them speaks
    (one,) = recover(tmp_path / "one", distill=0.0)
    two = tmp_path / "two" / "recovered" / one.folder.name
    first, second = (load_file(folder / "model.safetensors") for folder in (one.folder, two))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.folder.iterdir()}
