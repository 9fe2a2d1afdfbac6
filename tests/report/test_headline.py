"""The sentence at the top of the page says what `metrics.json`, `latency.json` and the study hold."""

import html
import json

import pytest

from autoprune.report.headline import format_steps, make_headline, map_change, proxy_training
from autoprune.report.html import render
from autoprune.report.run_summary import read_run_summary
from autoprune.run.results import FrontPoint


def test_the_first_sentence_compares_the_best_recovered_detector_with_the_dense_one(run):
    summary = read_run_summary(run)
    top = make_headline(summary)
    metrics = json.loads((run / f"recovered/trial-{top.trial:04d}/metrics.json").read_text())
    pruned, dense = (round(100 * m["metrics"]["map"], 1) for m in (metrics, metrics["dense"]))
    fraction = round(100 * metrics["gflops"] / metrics["dense"]["gflops"])
    assert f"has {fraction}% of the GFLOPs" in top.sentence
    assert f"reaches {pruned} mAP" in top.sentence
    assert f"dense one's {dense}" in top.sentence
    if pruned != dense:
        assert f"{abs(pruned - dense):.1f} points {'below' if pruned < dense else 'above'}" in top.sentence
    assert top.sentence in html.unescape(render(summary))
    front = {point.trial for point in summary.result.front}
    rivals = [one["metrics"]["map"] for number, one in summary.recovered.items() if number in front]
    assert metrics["metrics"]["map"] == max(rivals)


def recovery(map, gflops, origin="sampler"):
    """What `metrics.json` holds of a recovered trial, as far as the headline reads it."""
    dense = {"metrics": {"map": 0.6}, "gflops": 6.0, "mparams": 12.0}
    costs = {"gflops": gflops, "mparams": 2 * gflops}
    return {
        "metrics": {"map": map},
        **costs,
        "dense": dense,
        "origin": origin,
        "images": 40,
        "settings": {"steps": 1},
    }


def test_a_recovered_trial_on_the_front_comes_before_a_better_one_that_is_not(make_summary, tmp_path):
    front = [FrontPoint(3, "sampler", {"map": 0.5, "gflops": 3.0}, tmp_path / "trial-0003.yaml")]
    recovered = {3: recovery(0.55, 3.0), 4: recovery(0.58, 3.0, "uniform")}
    latencies = {3: [{"median_ms": 2.0, "dense_ms": 4.0}]}
    top = make_headline(make_summary(recovered=recovered, latencies=latencies, front=front))
    assert top.trial == 3
    assert "has 50% of the GFLOPs (3.00 of 6.00)" in top.sentence
    assert "reaches 55.0 mAP, 5.0 points below the dense one's 60.0" in top.sentence
    assert "found by the search" in top.details
    assert "recovered for 1 step." in top.details
    assert {tile.name: tile.change for tile in top.tiles} == {
        "mAP": "-5.0 points",
        "GFLOPs": "50% of dense",
        "parameters": "50% of dense",
        "latency": "50% of dense",
    }
    only_other = make_headline(make_summary(recovered={4: recovery(0.6, 1.5, "uniform")}))
    assert only_other.trial == 4
    assert "as much as the dense one's 60.0" in only_other.sentence
    assert "the warm start “uniform”" in only_other.details


def test_without_a_recovery_the_best_proxy_is_shown_with_the_command_that_recovers_it(make_summary, tmp_path):
    points = [
        FrontPoint(number, "uniform", {"map": value, "gflops": 2.0, "mparams": 3.0}, tmp_path)
        for number, value in ((1, 0.4), (2, 0.5))
    ]
    top = make_headline(make_summary(front=points))
    assert top.trial == 2
    assert "proxy mAP of 50.0" in top.sentence
    assert "measured without training" in top.details
    assert top.command == f"autoprune recover {tmp_path} --trial 2"


def test_before_anything_is_complete_the_command_resumes_the_search(make_summary, make_record, tmp_path):
    assert make_headline(make_summary()).sentence == "No trial has started."
    top = make_headline(make_summary([make_record(0, state="running")], trials=7))
    assert "1 of 7 trials were started" in top.sentence
    assert top.command == f"autoprune search --config {tmp_path}/config.yaml"


@pytest.mark.parametrize(
    ("pruned", "dense", "change"), [(0.5004, 0.5006, -0.1), (0.50, 0.50, 0.0), (0.4151, 0.4049, 1.0)]
)
def test_a_change_is_that_of_the_rounded_figures(pruned, dense, change):
    """A reader who subtracts 50.0 from 50.1 expects 0.1, whatever was rounded away."""
    assert map_change(pruned, dense) == change


def test_numbers_of_steps_are_words():
    assert [format_steps(count) for count in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert proxy_training(0) == "without training"
    assert proxy_training(50) == "after 50 steps of training"
