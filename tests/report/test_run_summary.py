"""A run directory is read as it is: curves, losses and latencies against numpy; broken files are named."""

import json
import shutil

import numpy as np
import pytest

from autoprune.detectors import detector_inputs, load_dense
from autoprune.errors import RunError
from autoprune.graph import analyze
from autoprune.report.run_summary import CURVE_POINTS, LOSS_POINTS, _losses, curve, read_run_summary
from autoprune.space.file import SpaceFile


def test_a_curve_is_the_fraction_that_the_least_important_channels_hold():
    scores = np.random.default_rng(0).exponential(size=CURVE_POINTS - 1)
    points = curve(scores)
    for removed in range(CURVE_POINTS):  # one channel per point
        least = sum(sorted(scores)[:removed])
        assert points[removed] == pytest.approx(least / sum(scores), abs=1e-4)
    assert curve(np.zeros(8)) == pytest.approx(np.linspace(0, 1, CURVE_POINTS))


def test_a_long_training_is_drawn_by_its_means(tmp_path):
    values = np.random.default_rng(1).uniform(size=4 * LOSS_POINTS)
    file = tmp_path / "losses.csv"
    file.write_text("step,loss\n" + "".join(f"{k},{v:.9g}\n" for k, v in enumerate(values, 1)))
    pairs = _losses(file)
    assert [step for step, _ in pairs] == list(range(4, 4 * LOSS_POINTS + 1, 4))
    assert [loss for _, loss in pairs] == pytest.approx(
        [values[k - 4 : k].mean() for k, _ in pairs], abs=1e-5
    )


def test_a_broken_file_is_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = next(copy.glob("recovered/*/metrics.json"))
    file.write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json can't be read .* delete .*trial-"):
        read_run_summary(copy)


def test_a_short_training_is_kept_step_by_step(tmp_path):
    file = tmp_path / "losses.csv"
    file.write_text("step,loss\n1,0.5\n2,0.25\n")
    assert _losses(file) == [(1, 0.5), (2, 0.25)]
    file.write_text("step,loss\n")
    assert _losses(file) == []


def test_groups_have_the_widths_and_bounds_of_the_space(run, demo_settings):
    summary = read_run_summary(run)
    dense, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    graph = analyze(dense, detector_inputs((128, 128)))
    space = SpaceFile.load(run / "space.yaml")
    assert {rule.match for rule in space.groups} & {group.name for group in summary.groups}
    assert {group.name for group in summary.groups} == set(summary.records[0].widths)
    for group in summary.groups:
        assert group.width == graph.groups[group.name].width
        rules = [rule for rule in space.groups if rule.match == group.name]
        if rules:
            assert group.max_ratio == rules[-1].max_ratio
        assert len(group.curve) == CURVE_POINTS


def test_recoveries_are_those_in_the_directory(run):
    summary = read_run_summary(run)
    folders = {int(path.name.removeprefix("trial-")): path for path in (run / "recovered").glob("trial-*")}
    assert summary.recovered.keys() == summary.losses.keys() == summary.latencies.keys() == folders.keys()
    for number, folder in folders.items():
        assert summary.recovered[number] == json.loads((folder / "metrics.json").read_text())
        assert summary.latencies[number] == json.loads((folder / "latency.json").read_text())
    assert summary.check is not None


def test_a_run_without_a_study_has_no_records(run, tmp_path):
    shutil.copy(run / "config.yaml", tmp_path)
    summary = read_run_summary(tmp_path)
    assert summary.records == ()
    assert summary.result.dense == {}
    assert summary.groups == ()
