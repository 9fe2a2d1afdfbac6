"""Searches under a budget on latency, on a machine whose latencies are a formula."""

import json
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from autoprune import progress
from autoprune.detectors import load_dense
from autoprune.errors import BudgetError, RunError, TrainingError
from autoprune.latency import fit, model
from autoprune.latency.machine import LatencySetup
from autoprune.latency.timing import Latency
from autoprune.run.results import load_result
from autoprune.search.pipeline import search
from autoprune.task import evaluator as evaluator_module
from autoprune.task.evaluator import PolicyEvaluator


def parameters_ms(detector):
    return sum(parameter.numel() for parameter in detector.parameters()) / 1e5


@pytest.fixture
def slow_machine(monkeypatch, tmp_path):
    """A machine that needs a millisecond for 100 000 parameters, and whose operators say about the same."""
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))

    def networks(models, *_):
        return [Latency(ms, ms, ms, 1) for ms in map(parameters_ms, models)]

    def tables(calls, *_):
        uses = Counter(call.weight for call in calls)  # a head is called at each level
        weights = [
            call.operator.inputs * call.operator.outputs * call.operator.kernel[0] ** 2 / uses[call.weight]
            for call in calls
        ]
        return np.array(weights)[:, None, None] / 1e5 * np.outer(model.GRID, model.GRID)

    monkeypatch.setattr(fit, "measure_tables", tables)
    monkeypatch.setattr(fit, "measure_networks", networks)
    monkeypatch.setattr(evaluator_module, "measure_networks", networks)
    return monkeypatch


@pytest.fixture
def settings(demo_settings):
    return {
        **demo_settings,
        "budget_gflops": (),
        "budget_latency_ms": "60%",
        "criterion": "l2",  # no pass over images
        "rungs": (0,),
        "trials": 1,
    }


def test_latency_is_an_objective(settings, tmp_path, slow_machine):
    objectives = {"objectives": ("map", "latency_ms"), "budget_latency_ms": None, "budget_gflops": "70%"}
    result = search(
        {k: v for k, v in {**settings, **objectives, "out": tmp_path / "run"}.items() if v is not None}
    )
    dense, _ = load_dense(settings["model"], settings["model_arguments"], weights=settings["weights"])
    pruned = result.front[0].policy.apply(dense)
    assert result.front[0].metrics["latency_ms"] == parameters_ms(pruned)
    assert result.dense["latency_ms"] == parameters_ms(dense)


def test_an_objective_ties_a_search_to_where_its_latencies_are_from(settings, tmp_path, slow_machine):
    given = {**settings, "objectives": ("map", "latency_ms"), "budget_gflops": "70%", "out": tmp_path / "run"}
    del given["budget_latency_ms"]
    search(given)
    slow_machine.setattr(LatencySetup, "label", "another device")
    search(given)  # nothing is left to measure
    with pytest.raises(RunError, match=r"run has its latencies from .*, and this is another device; resume"):
        search({**given, "trials": 2})


def test_a_budget_on_latency_is_met_by_measurement(settings, tmp_path, slow_machine, capsys):
    settings = {**settings, "trials": 6, "out": tmp_path / "run"}
    with progress.show(Console(width=400)):
        result = search(settings)
    said = capsys.readouterr().out
    assert "latency model of" in said
    assert "latency: predictions were off by" in said
    complete = [record for record in result.records if record.state == "complete"]
    assert len(complete) >= 4
    dense_ms = result.dense["latency_ms"]
    assert all(0.4 * dense_ms < record.metrics["latency_ms"] <= 0.6 * dense_ms for record in complete)
    dense, _ = load_dense(settings["model"], settings["model_arguments"], weights=settings["weights"])
    for point in result.front:  # the front holds what was measured
        assert point.metrics["latency_ms"] == parameters_ms(point.policy.apply(dense))

    slow_machine.setattr(fit, "measure_tables", lambda *_: pytest.fail("a resumed run keeps its model"))
    assert len(search({**settings, "trials": 7}).records) == 7


@pytest.fixture
def latency_run(settings, slow_machine, capsys):
    """Runs a search under a latency budget; gives its run and what it said of its latency model."""

    def run(out, **more):
        with progress.show(Console(width=4000)):
            search({**settings, "out": out, **more})
        said = capsys.readouterr().out.splitlines()
        content = json.loads((out / "latency_model.json").read_text())
        assert load_result(out).dense["latency_ms"] == content["dense_ms"]  # what the budget is a fraction of
        return content, [line for line in said if "latency model of" in line or "not kept" in line]

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
    assert (again, said) == (first, []), "a resumed run keeps its own"

    slow_machine.setattr(LatencySetup, "label", "another device")
    with pytest.raises(
        RunError, match=r"first has its latencies from .*, and this is another device; resume"
    ):
        latency_run(tmp_path / "first", trials=3)


def test_a_cache_that_cant_be_written_stops_no_search(latency_run, slow_machine, tmp_path):
    (tmp_path / "file").write_text("")
    slow_machine.setenv("AUTOPRUNE_CACHE", str(tmp_path / "file" / "below"))
    _, said = latency_run(tmp_path / "run")
    assert said[0].startswith("not kept for other runs: cannot write")


def test_a_busy_machine_is_said_to_be_one(latency_run, slow_machine, tmp_path):
    calm = fit.measure_networks

    def busy(models, *rest):
        latencies = calm(models, *rest)
        return [Latency(each.median_ms * (1 + n % 2), 1, 1, 1) for n, each in enumerate(latencies)]

    slow_machine.setattr(fit, "measure_networks", busy)
    _, said = latency_run(tmp_path / "run")
    assert "as if the machine had other work" in said[0]


def test_a_budget_on_latency_out_of_reach_is_refused_before_the_search(settings, tmp_path, slow_machine):
    with pytest.raises(BudgetError, match=r"0\.01 ms can't be reached, the smallest in this search space is"):
        search({**settings, "budget_latency_ms": "0.01", "out": tmp_path / "run"})
    assert not (tmp_path / "run").exists()


def test_trials_above_the_budget_on_latency_fail_before_any_work_is_spent_on_them(
    settings, tmp_path, slow_machine
):
    slow_machine.setattr(PolicyEvaluator, "latency_ms", lambda self, model: 1e9)  # a machine that got busy
    slow_machine.setattr(PolicyEvaluator, "check_latency", lambda self: None)
    with pytest.raises(TrainingError, match=r"trial 0: .* ms is above budget_latency_ms, .* by measurement"):
        search({**settings, "trials": 20, "out": tmp_path / "run"})
    assert load_result(tmp_path / "run").seconds["training"] == 0
