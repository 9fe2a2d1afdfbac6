"""A dry run counts what the search of the same settings does, writes nothing, and refuses what it refuses."""

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from autoprune.errors import AutopruneError, BudgetError, DataError, RunError
from autoprune.run.results import load_result
from autoprune.search import dry_run as module
from autoprune.search.dry_run import dry_run
from autoprune.search.estimate import Line, TrialCosts
from autoprune.search.pipeline import search


def level(seconds):
    return Line(((1.0, seconds),))


COSTS = TrialCosts(
    reconstruction=level(2.0),
    reconstructor_s=1.0,
    training=level(0.5),
    step=level(3.0),
    image=level(0.25),
    probe=level(0.125),
    latency=level(0.0),
)
DENSE_IMAGE_S = 0.5


@pytest.fixture
def known_times(monkeypatch):
    """What is timed takes as long as `COSTS` says, so that sums can be compared; the policies timed."""
    policies = []

    def time_trials(task, evaluator, given):
        policies.extend(given)
        return COSTS, DENSE_IMAGE_S

    monkeypatch.setattr(module, "time_trials", time_trials)
    return policies


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def seconds_of(estimate):
    return {part.name: part.seconds for part in estimate.parts}


def test_it_counts_the_trials_rungs_and_images_of_the_search(
    demo_settings, finished_run, known_times, tmp_path
):
    estimate = dry_run({**demo_settings, "trials": 9, "out": tmp_path / "run"})
    assert not (tmp_path / "run").exists()
    reached = Counter(rung for record in finished_run.records for rung in range(len(record.rungs)))
    warm = sum(record.origin != "sampler" for record in finished_run.records)
    assert estimate.trials == len(finished_run.records) == estimate.rungs[0] == reached[0]
    assert warm <= estimate.rungs[1] <= 9  # which sampled trials are promoted depends on their mAP
    seconds = seconds_of(estimate)
    images = 6
    assert seconds["reconstruction"] == pytest.approx(1 + 9 * 2)
    assert seconds["training"] == pytest.approx(estimate.rungs[1] * (0.5 + 3))
    assert seconds["evaluation"] == pytest.approx(
        9 * (images * 0.25 + 0.125) + estimate.rungs[1] * images * 0.25
    )
    assert seconds["dense detector"] == images * DENSE_IMAGE_S
    assert seconds["re-evaluation"] == 0
    assert estimate.wall_s == pytest.approx(sum(seconds.values()))


def test_policies_are_timed_at_the_costs_of_the_budgets(demo_settings, known_times, tmp_path):
    settings = {**demo_settings, "budget_gflops": "70%,40%", "rungs": (0,), "out": tmp_path / "r"}
    estimate = dry_run({**settings, "trials": 6})
    assert estimate.unsearched.startswith("nothing is searched for any of the 2 budgets (0.41")
    dense = 0.592  # GFLOPs of the demo's detector, as README shows it
    costs = sorted(gflops / dense for gflops, _ in known_times)
    assert len(costs) == 3
    assert (costs[0], costs[-1]) == (pytest.approx(0.4, abs=0.02), pytest.approx(0.7, abs=0.02))


def test_repeats_are_apart_and_the_check_of_proxies_is_counted(demo_settings, known_times, tmp_path):
    settings = {**demo_settings, "trials": 4, "confirm": 2, "check_proxies": 4, "steps": 7}
    estimate = dry_run({**settings, "out": tmp_path / "run"})
    assert 1 <= estimate.repeats <= 2
    assert estimate.trials == 4
    seconds = seconds_of(estimate)
    each = 1 + 2 + (6 * 0.25 + 0.125) + (0.5 + 3) + 6 * 0.25
    assert seconds["re-evaluation"] == pytest.approx(estimate.repeats * each)
    assert seconds["check of the proxies"] == pytest.approx(4 * (0.5 + 7 * 3 + 2 * 6 * 0.25))


def test_of_an_existing_run_it_estimates_what_is_left(demo_settings, copied_run, known_times):
    before = contents(copied_run)
    estimate = dry_run({**demo_settings, "trials": 11, "out": copied_run})
    assert contents(copied_run) == before
    assert (estimate.trials, estimate.finished, estimate.unsearched) == (2, 9, None)
    assert not {"importance", "dense detector"} & seconds_of(estimate).keys()
    search({**demo_settings, "trials": 11, "out": copied_run})
    assert len(load_result(copied_run).records) == 9 + estimate.trials


def test_on_changed_data_everything_is_to_do_again(demo_settings, copied_run, known_times, tmp_path):
    data = Path(shutil.copytree(demo_settings["data"], tmp_path / "data"))
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    settings = {**demo_settings, "data": data, "trials": 9, "out": copied_run}
    with pytest.raises(RunError, match="validation data"):
        dry_run(settings)
    before = contents(copied_run)
    estimate = dry_run(settings, accept_data_change=True)
    assert (estimate.trials, estimate.finished) == (9, 0)
    assert {"importance", "dense detector"} <= seconds_of(estimate).keys()
    assert contents(copied_run) == before


def test_of_a_finished_run_nothing_is_left(demo_settings, copied_run, known_times):
    estimate = dry_run({**demo_settings, "trials": 9, "out": copied_run})
    assert (estimate.trials, estimate.repeats, estimate.rungs) == (0, 0, (0, 0))
    assert known_times == []


def test_the_size_of_the_run_directory_is_that_of_the_search(
    demo_settings, finished_run, known_times, tmp_path
):
    estimate = dry_run({**demo_settings, "trials": 9, "out": tmp_path / "run"})
    actual = sum(path.stat().st_size for path in finished_run.run.rglob("*") if path.is_file()) / 1e6
    assert estimate.megabytes == pytest.approx(actual, rel=0.25)


def test_on_ray_it_contacts_nobody_and_divides_by_the_workers(
    demo_settings, known_times, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "autoprune.engines.ray", None)  # importing it would be an error
    settings = {**demo_settings, "trials": 6, "engine": "ray", "workers": 3, "address": "127.0.0.1:1"}
    threads = torch.get_num_threads()
    estimate = dry_run({**settings, "cpus_per_trial": threads + 1.0, "out": tmp_path / "run"})
    assert torch.get_num_threads() == threads
    side_by_side = sum(part.seconds for part in estimate.parts if part.parallel)
    assert {part.name for part in estimate.parts if part.parallel} >= {"training", "evaluation"}
    assert estimate.wall_s == pytest.approx(estimate.work_s - side_by_side + side_by_side / 3)
    seconds = seconds_of(estimate)
    assert seconds["loading in workers"] == pytest.approx(3 * seconds["loading and checks"])
    assert estimate.device_hours == pytest.approx(3 * (threads + 1) * estimate.wall_s / 3600)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"budget_gflops": "0.001"}, BudgetError),
        ({"data": "nowhere"}, DataError),
        ({"rungs": (3, 1)}, AutopruneError),
    ],
)
def test_it_refuses_what_a_search_refuses_in_the_same_words(demo_settings, tmp_path, changes, error):
    settings = {**demo_settings, **changes, "out": tmp_path / "run"}
    with pytest.raises(error) as refusal:
        search(settings)
    with pytest.raises(error, match=f"^{re.escape(str(refusal.value))}$"):
        dry_run(settings)
    assert not (tmp_path / "run").exists()


def test_a_policy_that_repeats_an_earlier_one_is_not_timed(demo_settings, known_times, tmp_path, monkeypatch):
    """A space of two groups has so few policies that most trials repeat one, as they do in the search."""
    monkeypatch.setattr("autoprune.study.ledger.MAX_DUPLICATES", 20)
    space = tmp_path / "space.yaml"
    content = {
        "model": demo_settings["model"],
        "model_arguments": demo_settings["model_arguments"],
        "input_size": [128, 128],
        "criterion": "l2",
        "groups": [
            {"match": "backbone.body.conv1", "max_ratio": 0.76},
            {"match": "backbone.body.layer1.0.conv1", "max_ratio": 0.76},
        ],
    }
    space.write_text(yaml.safe_dump(content))
    settings = {**demo_settings, "criterion": "l2", "space": space, "rungs": (0,)}
    settings |= {"sampler": "random", "budget_gflops": "90%", "trials": 5, "confirm": 4}
    estimate = dry_run({**settings, "out": tmp_path / "estimated"})
    search({**settings, "out": tmp_path / "run"})
    records = load_result(tmp_path / "run").records
    assert any(record.same_as is not None for record in records)
    assert 1 < estimate.trials < 5
    assert estimate.trials == sum(record.counts for record in records)


@pytest.mark.parametrize("place", ["a file", "a folder in a file", "a link to nothing"])
def test_it_refuses_a_place_that_the_search_cannot_write(demo_settings, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    out = {"a file": "file", "a folder in a file": "file/run", "a link to nothing": "link"}[place]
    for command in (search, dry_run):
        with pytest.raises(RunError, match=r"file|link"):
            command({**demo_settings, "out": tmp_path / out})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_criterion_that_reads_no_images_is_estimated(demo_settings, known_times, tmp_path):
    settings = {**demo_settings, "criterion": "l2", "warm_starts": False, "trials": 5}
    estimate = dry_run({**settings, "out": tmp_path / "run"})
    assert estimate.trials == estimate.rungs[0] == 5
    assert seconds_of(estimate)["images for importance"] == 0


def test_it_refuses_the_run_directory_of_another_search(demo_settings, copied_run):
    with pytest.raises(RunError, match="another configuration: budget_gflops"):
        dry_run({**demo_settings, "budget_gflops": "50%", "out": copied_run})


@pytest.mark.slow
def test_the_parts_are_timed_on_detectors_as_they_are(demo_settings, tmp_path):
    settings = {**demo_settings, "curves": True, "reconstruct_images": 2, "trials": 1}
    estimate = dry_run({**settings, "out": tmp_path / "run"})
    seconds = seconds_of(estimate)
    worked = ("images for importance", "curves", "reconstruction", "training", "evaluation", "dense detector")
    assert all(seconds[name] > 0 for name in worked)
    counts = {part.name: part.count.partition(" x ")[0] for part in estimate.parts}
    # the one trial reaches both rungs, of 0 steps and 1, at each of which it is evaluated on 6 images
    assert [counts[name] for name in worked if name != "curves"] == ["2", "1", "1", "12", "6"]
    assert int(counts["curves"]) > 20  # points of all groups
    assert not (tmp_path / "run").exists()
