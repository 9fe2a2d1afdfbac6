import csv
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from autoprune import progress
from autoprune.config import load_config, make_config
from autoprune.detectors import detector_inputs, load_dense
from autoprune.errors import BudgetError, ConfigError, DataError, RunError, TrainingError
from autoprune.latency import fit as latency
from autoprune.latency import model as latency_model
from autoprune.latency.machine import LatencySetup
from autoprune.latency.timing import Latency
from autoprune.policy import Policy
from autoprune.run.results import load_result
from autoprune.search import pipeline
from autoprune.search.pipeline import search
from autoprune.search.wall_time import PARTS
from autoprune.study.journal import Journal
from autoprune.task import evaluator as evaluator
from autoprune.task import pruning_task as task
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.scoring import scores_beside


@pytest.fixture(scope="module")
def finished(demo_settings, tmp_path_factory):
    """One search that several tests look at: warm starts, and trials of the sampler."""
    settings = {**demo_settings, "out": tmp_path_factory.mktemp("runs") / "one", "trials": 9}
    return settings, search(settings)


def outcome(result):
    return [
        (r.number, r.origin, r.state, dict(r.widths), [m["map"] for m in r.rungs]) for r in result.records
    ]


@pytest.mark.slow
def test_the_run_directory_holds_what_the_design_says(finished):
    _settings, result = finished
    run = result.run
    expected = {
        "config.yaml",
        "space.yaml",
        "study.journal",
        "importance.safetensors",
        "front.csv",
        "policies",
        "tensorboard",
    }
    assert {path.name for path in run.iterdir()} == expected
    rows = list(csv.DictReader((run / "front.csv").read_text().splitlines()))
    names = [f"trial-{int(row['trial']):04d}.yaml" for row in rows]
    assert sorted(names) == sorted(path.name for path in (run / "policies").iterdir())
    assert [int(row["trial"]) for row in rows] == [point.trial for point in result.front]
    assert [float(row["map"]) for row in rows] == [point.metrics["map"] for point in result.front]


def test_config_yaml_repeats_the_run(finished):
    _settings, result = finished
    text = (result.run / "config.yaml").read_text()
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    again = load_config(result.run / "config.yaml")
    assert again.budget_gflops == ("70%",)
    assert Path(again.weights).is_absolute()
    assert outcome(search(again)) == outcome(result)  # finished: nothing is run anew


def test_the_detector_had_something_to_lose(finished):
    _, result = finished
    assert result.dense["map"] > 0.4
    assert "sampler" in {r.origin for r in result.records}
    maps = {r.metrics["map"] for r in result.records}
    assert len(maps) > 3
    assert max(maps) > 0.1


def test_every_trial_is_on_budget_by_the_flop_counter(finished):
    settings, result = finished
    model, _ = load_dense(settings["model"], settings["model_arguments"], weights=settings["weights"])
    inputs = detector_inputs((128, 128))

    def count(module):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*inputs)
        return counter.get_total_flops() / 2e9

    limit = 0.7 * count(model)
    for point in result.front:
        cost = count(point.policy.apply(model))
        assert cost == pytest.approx(point.metrics["gflops"], abs=1e-12)
    for record in result.records:
        assert 0.98 * limit <= record.metrics["gflops"] <= limit


def test_warm_starts_come_first_and_climb_every_rung(finished):
    _, result = finished
    origins = [r.origin for r in result.records]
    assert origins[:2] == ["uniform", f"knapsack {make_config().criterion}"]
    assert origins == sorted(origins, key=lambda origin: origin == "sampler")
    assert all(len(r.rungs) == 2 for r in result.records if r.origin != "sampler")
    uniform = result.records[0]
    widths = Policy.load(result.front[0].path).widths
    fractions = [uniform.widths[name] / width for name, width in widths.items()]
    assert max(fractions) - min(fractions) < 0.3  # one ratio for all, but for rounding to 8 channels


def test_the_same_seed_repeats_everything_and_another_does_not(finished, tmp_path):
    settings, result = finished
    again = search({**settings, "out": tmp_path / "again", "trials": 4})
    assert outcome(again) == outcome(result)[:4]
    solved = {**settings, "reconstruct_images": 2, "trials": 2}
    one, two = (search({**solved, "out": tmp_path / name}) for name in ("one", "two"))
    assert outcome(one) == outcome(two) != outcome(result)[:2]
    first = {**settings, "warm_starts": False, "rungs": (0,), "trials": 1}
    one, other = (search({**first, "out": tmp_path / str(seed), "seed": seed}) for seed in (0, 1))
    assert one.records[0].widths != other.records[0].widths


def test_more_trials_extend_the_run(finished, tmp_path):
    settings, result = finished
    search({**settings, "out": tmp_path / "run", "trials": 2})
    extended = search({**settings, "out": tmp_path / "run", "trials": 4})
    assert outcome(extended) == outcome(result)[:4]


def test_the_account_of_time_adds_up(finished):
    _, result = finished
    seconds = result.seconds
    parts = sum(seconds[name] for name in PARTS)
    assert parts == pytest.approx(seconds["wall"], rel=0.01)
    assert seconds["training"] > 0
    assert 0 < result.overhead < 1


def test_load_result_reads_what_search_returned(finished):
    _, result = finished
    read = load_result(result.run)
    assert (read.front, read.records, read.dense) == (result.front, result.records, result.dense)


DRIVER = """
    import json, sys
    from pathlib import Path
    from autoprune.search.pipeline import search
    from autoprune.task.evaluator import Objective

    done = Path(sys.argv[2])
    evaluate = Objective.evaluate

    def counted(self, keep, rung, state, repeat=0):
        metrics, state = evaluate(self, keep, rung, state, repeat)
        with done.open("a") as file:
            file.write(f"{rung}\\n")
        return metrics, state

    Objective.evaluate = counted
    search(json.loads(sys.argv[1]))
"""


@contextmanager
def driver(settings, log):
    """A search in a process of its own; ``log`` gets a line after each rung of each trial."""
    settings = {**settings, "data": str(settings["data"]), "out": str(settings["out"])}
    environment = {**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parent.parent)}
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), json.dumps(settings), str(log)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_rungs(log, count, process):
    end = time.monotonic() + 200
    while not log.exists() or log.read_text().count("\n") < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_kill_9_in_the_middle_then_resume(finished, tmp_path):
    settings, result = finished
    settings = {**settings, "out": tmp_path / "run", "trials": 4}
    with driver(settings, tmp_path / "log") as process:
        wait_for_rungs(tmp_path / "log", 3, process)  # one trial is finished, the next on its way
        with pytest.raises(RunError, match=f"in use by another driver .*pid {process.pid}"):
            search(settings)
        process.send_signal(signal.SIGKILL)
    with (tmp_path / "run" / "study.journal").open("a") as journal:
        journal.write('{"op_code": 8, "worker_')  # a line that it did not get to finish
    resumed = search(settings)
    assert [entry[1:] for entry in outcome(resumed)] == [entry[1:] for entry in outcome(result)[:4]]
    policies = [tuple(sorted(r.widths.items())) for r in resumed.records]
    assert len(set(policies)) == len(policies) == 4
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "run" / "study.journal"))
    study = optuna.load_study(study_name="autoprune", storage=optuna.storages.JournalStorage(backend))
    assert not study.get_trials(states=[optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING])


def test_sigterm_writes_what_is_finished_and_the_same_command_resumes(finished, tmp_path):
    settings, result = finished
    settings = {**settings, "out": tmp_path / "run", "trials": 2}
    with driver(settings, tmp_path / "log") as process:
        wait_for_rungs(tmp_path / "log", 3, process)
        process.send_signal(signal.SIGTERM)
        assert "KeyboardInterrupt" in process.stderr.read()
    assert [point.trial for point in load_result(tmp_path / "run").front] == [0]
    assert (tmp_path / "run" / "front.csv").read_text().count("\n") == 2
    resumed = outcome(search(settings))
    assert [entry[1:] for entry in resumed] == [entry[1:] for entry in outcome(result)[:2]]


def test_a_trial_whose_loss_is_not_finite_fails_and_the_search_goes_on(finished, tmp_path, monkeypatch):
    settings, _ = finished
    recover = PolicyEvaluator._recover

    def nan_in_the_second_trial(self, model, keep, rung, repeat):
        calls.append(rung)
        if len(calls) == 3:
            raise TrainingError("the loss is not finite at step 1")
        return recover(self, model, keep, rung, repeat)

    calls: list[int] = []
    monkeypatch.setattr(PolicyEvaluator, "_recover", nan_in_the_second_trial)
    result = search({**settings, "out": tmp_path / "run", "trials": 3})
    assert [r.state for r in result.records] == ["complete", "failed", "complete"]
    assert [r.reason for r in result.failed] == ["the loss is not finite at step 1"]
    assert 1 not in [point.trial for point in result.front]


def test_if_all_trials_fail_the_search_says_so_and_stops(finished, tmp_path, monkeypatch):
    settings, _ = finished

    def fail(self, model, keep, rung, repeat):
        raise TrainingError("the loss is not finite at step 1")

    monkeypatch.setattr(PolicyEvaluator, "_recover", fail)
    with pytest.raises(
        TrainingError, match="every trial failed at rung 0, the first of them, trial 0: the loss"
    ):
        search({**settings, "out": tmp_path / "run", "trials": 50})
    assert len(load_result(tmp_path / "run").failed) == 5


def test_a_rung_that_none_passes_stops_the_search_with_the_first_reason(finished, tmp_path, monkeypatch):
    settings, _ = finished
    recover = PolicyEvaluator._recover

    def fail_above(self, model, keep, rung, repeat):
        calls.append(rung)
        if rung == 1:
            raise TrainingError(f"out of memory, time {calls.count(1)}")
        return recover(self, model, keep, rung, repeat)

    calls: list[int] = []
    monkeypatch.setattr(PolicyEvaluator, "_recover", fail_above)
    with pytest.raises(
        TrainingError, match="failed at rung 1, the first of them, trial 0: out of memory, time 1"
    ):
        search({**settings, "out": tmp_path / "run", "trials": 50})
    assert calls == [0, 1] * 5


def test_classes_that_the_data_holds_nothing_of_are_named(finished, tmp_path):
    settings, _ = finished
    data, expected = tmp_path / "data", {}
    shutil.copytree(settings["data"], data)
    for split in ("train", "val"):
        file = data / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        if split == "train":
            gone = content["categories"][1]["id"]
            content["annotations"] = [t for t in content["annotations"] if t["category_id"] != gone]
            file.write_text(json.dumps(content))
        looked_at = [image["id"] for image in content["images"]][: None if split == "train" else 1]
        found = {t["category_id"] for t in content["annotations"] if t["image_id"] in looked_at}
        expected[split] = {c["name"] for c in content["categories"] if c["id"] not in found}
    lines = io.StringIO()
    asked = {**settings, "data": data, "out": tmp_path / "run", "trials": 1, "rungs": (0,), "proxy_images": 1}
    with progress.show(Console(file=lines, width=300)):
        search(asked)
    said = [line for line in lines.getvalue().splitlines() if " hold no " in line]
    assert [line.partition(" images")[0] for line in said] == ["the 8 training", "the 1 validation"]
    for line, names in zip(said, expected.values(), strict=True):
        assert set(line.partition(" hold no ")[2].partition(":")[0].split(", ")) == names
    assert len(expected["train"]) == 1


def test_another_configuration_is_refused_and_its_fields_named(finished):
    settings, _result = finished
    with pytest.raises(RunError, match=r"another configuration: budget_gflops was .*70%.*, now .*50%"):
        search({**settings, "budget_gflops": "50%"})
    with pytest.raises(RunError, match="seed was 0, now 3"):
        search({**settings, "seed": 3})


def test_other_weights_under_the_same_name_are_refused(finished, tmp_path):
    from autoprune.detectors import load_state, save_state

    settings, _ = finished
    weights = tmp_path / "dense.safetensors"
    state = load_state(Path(settings["weights"]))
    save_state(state, weights)
    settings = {**settings, "weights": str(weights), "out": tmp_path / "run", "trials": 1}
    search(settings)
    state["backbone.body.conv1.weight"] += 0.01
    save_state(state, weights)
    with pytest.raises(RunError, match="another search: its weights differs"):
        search({**settings, "trials": 2})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": Path("/nowhere")}, DataError, r"--data FOLDER \(YAML: data\).*`autoprune demo`"),
        ({"weights": None}, ConfigError, r"--weights FILE \(YAML: weights\).*`autoprune demo`"),
        ({"weights": "gone.safetensors"}, ConfigError, r"no weights at gone.safetensors.*--weights"),
        ({"budget_gflops": "0.1%"}, BudgetError, r"smallest in this search space is \d"),
        ({"budget_gflops": "100"}, BudgetError, r"prunes nothing"),
        ({"budget_gflops": "many"}, BudgetError, r"is not a number"),
        ({"budgt_gflops": "50"}, ConfigError, r"unknown key `budgt_gflops`.*budget_gflops"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(finished, tmp_path, changes, error, message):
    settings, _ = finished
    settings = {**settings, "out": tmp_path / "runs" / "new", **changes}
    with pytest.raises(error, match=message) as raised:
        search({name: value for name, value in settings.items() if value is not None})
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(finished, tmp_path, monkeypatch):
    settings, _ = finished

    def full(self, logs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append_logs", full)
    with pytest.raises(RunError, match="the disk is full"):
        search({**settings, "out": tmp_path / "run"})


def test_a_space_file_says_what_the_model_is(finished, tmp_path):
    settings, result = finished
    space = result.run / "space.yaml"
    settings = {name: value for name, value in settings.items() if name not in ("model", "model_arguments")}
    again = search({**settings, "space": space, "out": tmp_path / "run", "trials": 1})
    assert outcome(again) == outcome(result)[:1]
    with pytest.raises(ConfigError, match="the search space is for retinanet_resnet18_fpn, not fcos"):
        search({**settings, "space": space, "model": "fcos_resnet18_fpn", "out": tmp_path / "other"})


def test_scores_beside_a_space_file_are_not_computed_again(finished, tmp_path, monkeypatch):
    settings, result = finished
    space = tmp_path / "space.yaml"
    shutil.copy(result.run / "space.yaml", space)
    shutil.copy(result.run / "importance.safetensors", scores_beside(space))
    monkeypatch.setattr(task, "score_together", lambda *_: pytest.fail("the scores were there"))
    again = search({**settings, "space": space, "out": tmp_path / "run", "trials": 1})
    assert outcome(again) == outcome(result)[:1]


def test_several_budgets_each_get_their_warm_starts(finished, tmp_path):
    settings, result = finished
    asked = {**settings, "budget_gflops": "70%,50%", "rungs": (0,), "trials": 4}
    found = search({**asked, "out": tmp_path / "run"})
    dense, knapsack = result.dense["gflops"], f"knapsack {make_config().criterion}"
    assert [r.origin for r in found.records] == ["uniform", "uniform", knapsack, knapsack]
    assert [round(r.budget / dense, 3) for r in found.records] == [0.7, 0.5, 0.7, 0.5]
    assert all(r.metrics["gflops"] <= r.budget for r in found.records)


def test_latency_is_an_objective(finished, tmp_path):
    settings, _ = finished
    asked = {**settings, "objectives": ("map", "latency_ms"), "trials": 1, "rungs": (0,)}
    result = search({**asked, "out": tmp_path / "run"})
    assert result.front[0].metrics["latency_ms"] > 0
    assert result.dense["latency_ms"] > 0


@pytest.fixture
def slow_machine(monkeypatch, tmp_path):
    """A machine that needs a millisecond for 100 000 parameters, and whose operators say about the same."""
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))

    def networks(models, *_):
        models = list(models)
        ms = [sum(p.numel() for p in model.parameters()) / 1e5 for model in models]
        return [Latency(value, value, value, 1) for value in ms]

    def tables(calls, *_):
        uses = Counter(call.weight for call in calls)  # a head is called at each level
        weights = [
            call.operator.inputs * call.operator.outputs * call.operator.kernel[0] ** 2 / uses[call.weight]
            for call in calls
        ]
        return np.array(weights)[:, None, None] / 1e5 * np.outer(latency_model.GRID, latency_model.GRID)

    monkeypatch.setattr(latency, "measure_tables", tables)
    monkeypatch.setattr(latency, "measure_networks", networks)
    monkeypatch.setattr(evaluator, "measure_networks", networks)
    return monkeypatch


def test_a_budget_on_latency_is_met_by_measurement(finished, tmp_path, slow_machine, capsys):
    settings, _ = finished
    asked = {**settings, "budget_gflops": (), "rungs": (0,), "trials": 6, "budget_latency_ms": "60%"}
    asked["out"] = tmp_path / "run"
    with progress.show(Console(width=400)):
        result = search(asked)
    said = capsys.readouterr().out
    assert "latency model of" in said
    assert "latency: predictions were off by" in said
    done = [record for record in result.records if record.state == "complete"]
    assert len(done) >= 4
    dense = result.dense["latency_ms"]
    assert all(0.4 * dense < record.metrics["latency_ms"] <= 0.6 * dense for record in done)
    for point in result.front:  # the front holds what was measured
        model = point.policy.apply(
            load_dense(settings["model"], settings["model_arguments"], weights=settings["weights"])[0]
        )
        assert point.metrics["latency_ms"] == sum(p.numel() for p in model.parameters()) / 1e5

    def never(*_):
        raise AssertionError

    slow_machine.setattr(latency, "measure_tables", never)
    assert len(search({**asked, "trials": 7}).records) == 7


@pytest.fixture
def latency_run(finished, slow_machine, capsys):
    """Runs a search under a latency budget; gives its run and what it said of its latency model."""
    settings, _ = finished
    asked = {**settings, "budget_gflops": (), "rungs": (0,), "trials": 1, "budget_latency_ms": "60%"}

    def run(out, **more):
        with progress.show(Console(width=4000)):
            search({**asked, "out": out, **more})
        said = capsys.readouterr().out.splitlines()
        model = json.loads((out / "latency_model.json").read_text())
        assert load_result(out).dense["latency_ms"] == model["dense_ms"]  # which the budget is a fraction of
        return model, [line for line in said if "latency model of" in line or "not kept" in line]

    return run


def test_another_run_takes_the_measured_latencies_from_the_cache(latency_run, slow_machine, tmp_path):
    first, said = latency_run(tmp_path / "first")
    assert "mean error" in said[0]
    (cached,) = (tmp_path / "cache" / "latency").iterdir()
    assert json.loads(cached.read_text()) == first

    content = {**first, "dense_ms": 2 * first["dense_ms"]}  # so that it shows where a run has its model from
    cached.write_text(json.dumps(content))
    second, (line,) = latency_run(tmp_path / "second")
    assert second == content
    assert f"as an earlier run measured it; delete {cached} to measure it again" in line
    again, said = latency_run(tmp_path / "first", trials=2)
    assert (again, said) == (first, []), "a run that goes on keeps its own"

    slow_machine.setattr(LatencySetup, "label", "another device")
    third, _ = latency_run(tmp_path / "third")
    assert (third["label"], third["dense_ms"]) == ("another device", first["dense_ms"])
    assert len(list((tmp_path / "cache" / "latency").iterdir())) == 2
    with pytest.raises(
        RunError, match=r"first has its latencies from .*, and this is another device; resume"
    ):
        latency_run(tmp_path / "first", trials=3)


def test_a_cache_that_cant_be_written_stops_no_search(latency_run, slow_machine, tmp_path):
    (tmp_path / "file").write_text("")
    slow_machine.setenv("AUTOPRUNE_CACHE", str(tmp_path / "file" / "below"))
    _, said = latency_run(tmp_path / "run")
    assert said[0].startswith("not kept for other runs: cannot write")


def test_what_a_busy_machine_measured_is_for_no_other_run(latency_run, slow_machine, tmp_path):
    calm = latency.measure_networks

    def busy(models, *rest):
        found = calm(models, *rest)
        return [Latency(value.median_ms * (1 + place % 2), 1, 1, 1) for place, value in enumerate(found)]

    slow_machine.setattr(latency, "measure_networks", busy)
    _, said = latency_run(tmp_path / "run")
    assert "as if the machine had other work" in said[0]
    assert not (tmp_path / "cache").exists()


def test_a_budget_on_latency_out_of_reach_is_refused_before_the_search(finished, tmp_path, slow_machine):
    settings, _ = finished
    asked = {**settings, "rungs": (0,), "trials": 1, "budget_latency_ms": "0.01", "out": tmp_path / "run"}
    with pytest.raises(BudgetError, match=r"0\.01 ms can't be reached, the smallest in this search space is"):
        search(asked)
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert not (tmp_path / "run" / "latency_model.json").exists()


def test_trials_above_the_budget_on_latency_fail_before_any_work_is_spent_on_them(
    finished, tmp_path, slow_machine
):
    settings, _ = finished
    slow_machine.setattr(PolicyEvaluator, "latency_ms", lambda self, model: 1e9)  # a machine that got busy
    slow_machine.setattr(PolicyEvaluator, "check_latency", lambda self, keep: None)
    asked = {**settings, "budget_gflops": (), "rungs": (0,), "trials": 20, "budget_latency_ms": "60%"}
    with pytest.raises(TrainingError, match=r"trial 0: .* ms is above budget_latency_ms, .* by measurement"):
        search({**asked, "out": tmp_path / "run"})
    assert load_result(tmp_path / "run").seconds["training"] == 0


def test_runs_that_share_a_database_keep_apart(finished, tmp_path):
    settings, result = finished
    shared = {**settings, "storage": f"sqlite:///{tmp_path}/shared.db", "rungs": (0,), "trials": 1}
    first = search({**shared, "out": tmp_path / "a" / "run"})
    assert outcome(first)[0][3] == outcome(result)[0][3]
    with pytest.raises(RunError, match=f"holds the study of {tmp_path}/a/run"):
        search({**shared, "out": tmp_path / "b" / "run"})
    other = search({**shared, "out": tmp_path / "b" / "other", "budget_gflops": "50%"})
    assert len(other.records) == len(load_result(tmp_path / "a" / "run").records) == 1


def test_the_lock_of_a_dead_driver_does_not_hold(finished):
    settings, result = finished
    lock = result.run / ".lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))  # no process holds it
    search(settings)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(json.dumps({"host": "elsewhere", "pid": 1}))
        held.flush()
        with pytest.raises(RunError, match="host elsewhere, pid 1"):
            search(settings)
    lock.unlink()


def test_a_config_a_mapping_and_a_file_are_all_taken(finished, tmp_path):
    settings, result = finished
    file = tmp_path / "config.yaml"
    file.write_text((result.run / "config.yaml").read_text())
    for form in (make_config(**settings), file, str(file)):
        assert search(form).front == result.front
    with pytest.raises(ConfigError, match="not a int"):
        search(3)  # type: ignore[arg-type]


def test_a_runtime_that_is_not_installed_is_told_before_any_work(finished, tmp_path, monkeypatch):
    settings, _ = finished
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(pipeline, "load_task", None)  # calling it would be another error
    asked = {**settings, "latency_runtime": "openvino", "budget_latency_ms": "60%", "out": tmp_path / "run"}
    with pytest.raises(
        ConfigError, match=r"openvino can't be imported .* `pip install 'autoprune\[openvino\]'`"
    ):
        search(asked)
    assert not (tmp_path / "run").exists()
