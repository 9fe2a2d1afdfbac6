"""Searches among input sizes: trials of each, resumed after a kill; latencies that depend on the size."""

import copy
import csv
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoprune.config import make_config
from autoprune.detectors import detector_inputs, load_dense, resize_rule
from autoprune.errors import BudgetError, RunError
from autoprune.latency import fit, model
from autoprune.latency.timing import Latency
from autoprune.report.entries import trial_entries
from autoprune.run.results import load_result
from autoprune.search.pipeline import search
from autoprune.space.input_size import INPUT_SIZE, channels_of
from autoprune.task import evaluator as evaluator_module
from autoprune.task.evaluator import PolicyEvaluator

from ..conftest import SIZED
from .conftest import outcome


@pytest.fixture(scope="module")
def dense(demo_settings):
    return load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )[0]


def count(module, side=128):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*detector_inputs((side, side)))
    return counter.get_total_flops() / 2e9


def test_trials_of_every_size_cost_what_their_detectors_do(sized_run, dense):
    result = load_result(sized_run)
    origins = [(record.origin, record.pixels) for record in result.records]
    assert origins[:3] == [("uniform", 128), ("dense at 96 px", 96), ("dense at 64 px", 64)]
    assert ("sampler", 128) in origins or ("sampler", 96) in origins
    budget = 0.6 * count(dense)
    assert all(0 < record.metrics["gflops"] <= budget for record in result.records if record.counts)
    assert result.front
    for point in result.front:
        record = next(record for record in result.records if record.number == point.trial)
        applied = point.policy.apply(dense)
        assert resize_rule(applied).pixels == record.pixels
        assert count(applied) == pytest.approx(point.metrics["gflops"], abs=1e-12)  # an image of any size
        kept = {**channels_of(record.widths), **point.policy.kept_widths}
        assert kept == channels_of(record.widths)
    for name, side in (("dense at 96 px", 96), ("dense at 64 px", 64)):
        (record,) = [r for r in result.records if r.origin == name and r.repeat_of is None]
        assert record.metrics["gflops"] == pytest.approx(count(dense_at(dense, side), side), abs=1e-12)


def dense_at(dense, side):
    same = copy.deepcopy(dense)
    same.transform.min_size, same.transform.max_size = (side,), side
    return same


def test_the_front_tells_the_sizes_and_a_repeat_has_that_of_its_trial(sized_run):
    result = load_result(sized_run)
    by_number = {record.number: record for record in result.records}
    rows = list(csv.DictReader((sized_run / "front.csv").read_text().splitlines()))
    assert [int(row["input_px"]) for row in rows] == [by_number[int(row["trial"])].pixels for row in rows]
    (repeat,) = [record for record in result.records if record.repeat_of is not None]
    assert repeat.widths == by_number[repeat.repeat_of].widths
    assert result.identity[INPUT_SIZE] == "96, 64"
    assert INPUT_SIZE in result.identity["variables"]


class Killed(BaseException):
    """Ends a driver as a kill does: nothing handles it."""


def test_a_search_that_is_killed_twice_resumes_to_the_trials_of_an_uninterrupted_one(
    sized_run, demo_settings, tmp_path, monkeypatch
):
    """Once among the warm starts, and once among those of the sampler."""
    evaluate, calls = PolicyEvaluator.evaluate, Counter()

    def killed(self, *arguments):
        calls["all"] += 1
        if calls["all"] in (3, 12):  # the third is evaluated again
            raise Killed
        return evaluate(self, *arguments)

    settings = {**demo_settings, **SIZED, "trials": 12, "out": tmp_path / "run"}
    monkeypatch.setattr(PolicyEvaluator, "evaluate", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            search(settings)
    monkeypatch.undo()
    resumed, expected = search(settings), load_result(sized_run)
    assert [trial[1:] for trial in outcome(resumed)] == [trial[1:] for trial in outcome(expected)]
    with pytest.raises(RunError, match=r"input_sizes was \[1\.0, 0\.75, 0\.5\], now \[1\.0, 0\.75\]"):
        search({**settings, "input_sizes": (1.0, 0.75)})


def test_one_size_is_a_search_as_before(finished_run, demo_settings, tmp_path):
    one = search({**demo_settings, "trials": 3, "input_sizes": (1.0,), "out": tmp_path / "run"})
    assert outcome(one) == outcome(finished_run)[:3]
    assert one.identity == finished_run.identity
    assert not any(INPUT_SIZE in record.widths for record in one.records)
    assert trial_entries(one)[1].pixels is None
    assert "input_px" not in (tmp_path / "run/front.csv").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"input_sizes": (1.0, 0.1)},
            "input_sizes: 0.1 of the 128 pixels of retinanet_res.* is below",
        ),
        ({"input_sizes": (1.0, 0.8, 0.7)}, "is 96 pixels, as 0.8 is"),
    ],
)
def test_sizes_that_cannot_be_are_refused_and_nothing_is_written(demo_settings, tmp_path, settings, message):
    with pytest.raises(Exception, match=message) as caught:
        search({**demo_settings, **settings, "out": tmp_path / "run"})
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*.yaml"))


def test_a_budget_that_only_a_smaller_size_reaches_is_searched_there(demo_settings, tmp_path):
    settings = {**demo_settings, **SIZED, "budget_gflops": "1.5%", "trials": 2, "confirm": 0}
    with pytest.raises(BudgetError, match="can't be reached"):
        search({**settings, "input_sizes": (1.0,), "out": tmp_path / "own"})
    result = search({**settings, "out": tmp_path / "run"})
    assert result.records
    assert {record.pixels for record in result.records} <= {96, 64}
    assert trial_entries(result)[1].pixels == 128  # the dense detector keeps its own size


def milliseconds(detector):
    area = (resize_rule(detector).pixels / 128) ** 2
    return area * sum(parameter.numel() for parameter in detector.parameters()) / 1e5


def test_latencies_are_those_of_each_size(demo_settings, tmp_path, monkeypatch, dense):
    def networks(models, *_):
        return [Latency(ms, ms, ms, 1) for ms in map(milliseconds, models)]

    def tables(calls, *_):
        uses = Counter(call.weight for call in calls)
        weights = [
            call.operator.inputs * call.operator.outputs * call.operator.kernel[0] ** 2 / uses[call.weight]
            for call in calls
        ]
        return np.array(weights)[:, None, None] / 1e5 * np.outer(model.GRID, model.GRID)

    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fit, "measure_tables", tables)
    for module in (fit, evaluator_module):
        monkeypatch.setattr(module, "measure_networks", networks)
    settings = {**demo_settings, **SIZED, "budget_gflops": (), "budget_latency_ms": "60%", "trials": 5}
    result = search({**settings, "confirm": 0, "out": tmp_path / "run"})
    limit = 0.6 * milliseconds(dense)
    assert {file.name for file in (tmp_path / "run").glob("latency*")} == {
        "latency_model.json",
        "latency_model_96.json",
        "latency_model_64.json",
    }
    assert {record.pixels for record in result.records} == {128, 96, 64}
    assert result.front
    for point in result.front:
        applied = point.policy.apply(dense)
        assert point.metrics["latency_ms"] == pytest.approx(milliseconds(applied))
        assert milliseconds(applied) <= limit
    assert make_config(**settings).input_sizes == (1.0, 0.75, 0.5)
