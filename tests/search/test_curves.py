"""Curves in a whole search: measured once, kept in the run, and what ranks its policies."""

import json

import numpy as np
import pytest

from autoprune.config import make_config
from autoprune.importance.curves import CURVES, Curve, curve_scores
from autoprune.importance.weights import l2
from autoprune.run.directory import RunDirectory
from autoprune.search import pipeline
from autoprune.search.curves import load_probe, score_curves
from autoprune.space.one_shot import greedy, knapsack
from autoprune.task import probe, sensitivity
from autoprune.task.pruning_task import load_task


@pytest.fixture
def settings(demo_settings, monkeypatch, tmp_path):
    monkeypatch.setattr(sensitivity, "RATIOS", (0.5,))
    monkeypatch.setattr(probe, "IMAGES", 2)
    settings = {**demo_settings, "recalibration_images": 0, "rungs": (0,), "trials": 3, "criterion": "l2"}
    return {**settings, "curves": True, "out": tmp_path / "run"}


def measured(run):
    curves = json.loads(run.curves_file.read_text())["curves"]
    return {name: Curve(*map(tuple, curve)) for name, curve in curves.items()}


def test_a_search_begins_with_the_policies_of_its_curves_and_measures_them_once(settings, monkeypatch):
    result = pipeline.search(settings)
    config, run = make_config(**settings), RunDirectory(settings["out"])
    task = load_task(config)
    scores = curve_scores(measured(run), l2(task.model, task.graph), task.graph)
    criteria = {CURVES: scores, "l2": l2(task.model, task.graph)}
    plan = pipeline.make_plan(task, pipeline.SpaceFile.load(run.space_file), criteria, run)[0]
    expected = [make(plan.space, scores, plan.bounds[0], CURVES).widths for make in (knapsack, greedy)]
    starts = {record.origin: dict(record.widths) for record in result.records}
    assert starts["knapsack curves"] == expected[0]
    if "greedy curves" in starts:  # absent where both end with the same widths
        assert starts["greedy curves"] == expected[1]

    monkeypatch.setattr(sensitivity.SensitivityProbe, "__call__", lambda *_: pytest.fail("measured again"))
    pipeline.search({**settings, "trials": 4})


def test_a_worker_measures_what_the_driver_would(settings):
    task = load_task(make_config(**settings))
    order = l2(task.model, task.graph)
    name = next(iter(task.graph.prunable))
    there, here = load_probe(task.config, order, False), sensitivity.SensitivityProbe(task, order)
    assert there(name) == here(name)


def test_scores_follow_the_engine_of_the_settings(settings, monkeypatch, tmp_path):
    """What is sent to a cluster loads by itself: absolute settings and the order of the channels."""
    from autoprune.search import curves

    sent = []

    def each(load, names, cluster):
        sent.append((load, cluster))
        return ((name, Curve((1,), (0.5,))) for name in names)

    engine = type("Engine", (), {"in_driver": False, "each": staticmethod(each)})
    monkeypatch.setattr(curves, "ENGINES", {"ray": engine})
    task = load_task(make_config(**{**settings, "engine": "ray", "workers": 2, "address": "auto"}))
    order = l2(task.model, task.graph)
    scores = score_curves(task, order, tmp_path / "curves.json", empty=True)
    ((load, cluster),) = sent
    assert load.func is load_probe
    assert load.args[0].data.is_absolute()
    assert load.args[1] is order
    assert load.args[2] is True
    assert (cluster.address, cluster.workers) == ("auto", 2)
    for name, group in task.graph.prunable.items():
        least = np.sort(scores[name])[: group.width - 1].sum()
        assert least == pytest.approx(0.5, rel=1e-3)
