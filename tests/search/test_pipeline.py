"""Whole searches of the demo detector: what is written, repeated, extended, and refused."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from autoprune import progress
from autoprune.config import load_config, make_config
from autoprune.detectors import detector_inputs, load_dense
from autoprune.errors import ConfigError, RunError
from autoprune.policy import Policy
from autoprune.run.results import load_result
from autoprune.search import checks
from autoprune.search.pipeline import search
from autoprune.task import scoring

from .conftest import outcome

CREATE_TRIAL = 4  # in Optuna's journal


@pytest.mark.slow
def test_the_run_directory_holds_what_the_design_says(finished_run):
    run = finished_run.run
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


def test_config_yaml_repeats_the_run(finished_run, copied_run):
    text = (copied_run / "config.yaml").read_text()
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    assert "# validation data: 6 images, 16 boxes, hash " in text
    config = load_config(copied_run / "config.yaml", out=copied_run)
    assert config.budget_gflops == ("70%",)
    assert Path(config.weights).is_absolute()
    journal = (copied_run / "study.journal").read_text()
    assert outcome(search(config)) == outcome(finished_run)
    added = (copied_run / "study.journal").read_text()[len(journal) :].splitlines()
    assert CREATE_TRIAL not in [json.loads(line)["op_code"] for line in added]


def test_the_detector_had_something_to_lose(finished_run):
    assert finished_run.dense["map"] > 0.4
    assert "sampler" in {r.origin for r in finished_run.records}
    maps = {r.metrics["map"] for r in finished_run.records}
    assert len(maps) > 3
    assert max(maps) > 0.1


def test_every_trial_is_on_budget_by_the_flop_counter(finished_run, demo_settings):
    model, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    inputs = detector_inputs((128, 128))

    def count(module):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*inputs)
        return counter.get_total_flops() / 2e9

    limit = 0.7 * count(model)
    for point in finished_run.front:
        cost = count(point.policy.apply(model))
        assert cost == pytest.approx(point.metrics["gflops"], abs=1e-12)
    for record in finished_run.records:
        assert 0.98 * limit <= record.metrics["gflops"] <= limit


def test_warm_starts_come_first_and_climb_every_rung(finished_run):
    origins = [r.origin for r in finished_run.records]
    assert origins[:2] == ["uniform", "greedy joint"]
    assert origins == sorted(origins, key=lambda origin: origin == "sampler")
    assert all(len(r.rungs) == 2 for r in finished_run.records if r.origin != "sampler")
    uniform = finished_run.records[0]
    widths = Policy.load(finished_run.front[0].path).widths
    fractions = [uniform.widths[name] / width for name, width in widths.items()]
    assert max(fractions) - min(fractions) < 0.3  # one ratio for all, but for rounding to 8 channels


def test_another_seed_is_another_search(demo_settings, tmp_path):
    settings = {**demo_settings, "criterion": "l2", "warm_starts": False, "rungs": (0,), "trials": 1}
    one, other = (search({**settings, "out": tmp_path / str(seed), "seed": seed}) for seed in (0, 1))
    assert one.records[0].widths != other.records[0].widths


def test_reconstruction_repeats_as_well(finished_run, scored_settings, tmp_path):
    settings = {**scored_settings, "reconstruct_images": 2, "rungs": (0,), "trials": 1}
    one, two = (search({**settings, "out": tmp_path / name}) for name in ("one", "two"))
    assert outcome(one) == outcome(two)
    (*policy, maps), (*same, others) = outcome(one)[0], outcome(finished_run)[0]
    assert policy == same
    assert maps[0] != others[0]


def test_the_same_seed_repeats_everything_also_where_a_run_is_extended(demo_settings, tmp_path):
    settings = {**demo_settings, "criterion": "l2", "warm_starts": False, "rungs": (0,)}
    search({**settings, "out": tmp_path / "run", "trials": 1})
    began = (tmp_path / "run" / "config.yaml").read_text()
    extended = search({**settings, "out": tmp_path / "run", "trials": 2})
    whole = search({**settings, "out": tmp_path / "whole", "trials": 2})
    assert outcome(extended) == outcome(whole)
    assert [record.origin for record in whole.records] == ["sampler"] * 2
    assert whole.records[0].widths != whole.records[1].widths
    assert "all settings that the run began with" in began
    assert "\ntrials: 1\n" in began
    assert (tmp_path / "run" / "config.yaml").read_text() == began


def test_classes_that_the_data_holds_nothing_of_are_named(demo_settings, tmp_path):
    data, expected = tmp_path / "data", {}
    shutil.copytree(demo_settings["data"], data)
    for split in ("train", "val"):
        file = data / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        if split == "train":
            gone = content["categories"][1]["id"]
            content["annotations"] = [t for t in content["annotations"] if t["category_id"] != gone]
            file.write_text(json.dumps(content))
        used = [image["id"] for image in content["images"]][: None if split == "train" else 1]
        present = {t["category_id"] for t in content["annotations"] if t["image_id"] in used}
        expected[split] = {c["name"] for c in content["categories"] if c["id"] not in present}
    lines = io.StringIO()
    settings = {**demo_settings, "criterion": "l2", "trials": 1, "rungs": (0,), "proxy_images": 1}
    with progress.show(Console(file=lines, width=300)):
        search({**settings, "data": data, "out": tmp_path / "run"})
    said = [line for line in lines.getvalue().splitlines() if " hold no " in line]
    assert [line.partition(" images")[0] for line in said] == ["the 8 training", "the 1 validation"]
    for line, names in zip(said, expected.values(), strict=True):
        assert set(line.partition(" hold no ")[2].partition(":")[0].split(", ")) == names
    assert len(expected["train"]) == 1


def test_a_policy_file_that_is_lost_is_written_again(finished_run, copied_run):
    file = copied_run / finished_run.best.path.relative_to(finished_run.run)
    file.unlink()
    search(load_config(copied_run / "config.yaml", out=copied_run))
    assert Policy.load(file) == finished_run.best.policy


def test_a_space_file_says_what_the_model_is_and_scores_beside_it_are_not_computed_again(
    finished_run, scored_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(scoring, "score_together", lambda *_: pytest.fail("the scores were there"))
    settings = {k: value for k, value in scored_settings.items() if k not in ("model", "model_arguments")}
    again = search({**settings, "out": tmp_path / "run", "trials": 1})
    assert outcome(again) == outcome(finished_run)[:1]


def test_a_run_keeps_its_space_and_its_size_where_these_are_not_given_again(
    demo_settings, l2_space, tmp_path
):
    l2_space.write_text(l2_space.read_text().replace("round_to: 8", "round_to: 4"))
    size = (96, 128)
    settings = {**demo_settings, "criterion": "l2", "out": tmp_path / "run", "rungs": (0,)}
    search({**settings, "space": l2_space, "input_size": size, "trials": 1})
    (tmp_path / "run" / "space.yaml").unlink()  # as if it was killed before
    assert len(search({**settings, "trials": 2}).records) == 2
    assert "round_to: 4" in (tmp_path / "run" / "space.yaml").read_text()
    l2_space.unlink()
    result = search({**settings, "trials": 3})
    assert len(result.records) == 3
    assert result.front[0].policy.input_size == size


def test_several_budgets_each_get_their_warm_starts(finished_run, demo_settings, tmp_path):
    settings = {**demo_settings, "budget_gflops": "70%,50%", "rungs": (0,), "trials": 4}
    records = search({**settings, "out": tmp_path / "run"}).records
    dense, second = finished_run.dense["gflops"], "greedy joint"
    assert [r.origin for r in records] == ["uniform", "uniform", second, second]
    assert [round(r.budget / dense, 3) for r in records] == [0.7, 0.5, 0.7, 0.5]
    assert all(r.metrics["gflops"] <= r.budget for r in records)


def test_runs_that_share_a_database_keep_apart(finished_run, scored_settings, tmp_path):
    shared = {**scored_settings, "storage": f"sqlite:///{tmp_path}/shared.db", "rungs": (0,), "trials": 1}
    first = search({**shared, "out": tmp_path / "a" / "run"})
    assert outcome(first)[0][3] == outcome(finished_run)[0][3]
    with pytest.raises(RunError, match=f"holds the study of {tmp_path}/a/run"):
        search({**shared, "out": tmp_path / "b" / "run"})
    assert not (tmp_path / "b").exists()
    other = search({**shared, "out": tmp_path / "b" / "other", "budget_gflops": "50%"})
    assert len(other.records) == len(load_result(tmp_path / "a" / "run").records) == 1


def test_a_config_a_mapping_and_a_file_are_all_taken(finished_run, copied_run, demo_settings, tmp_path):
    settings = {**demo_settings, "trials": 9, "out": copied_run}
    file = tmp_path / "config.yaml"
    file.write_text((copied_run / "config.yaml").read_text().replace(str(finished_run.run), str(copied_run)))
    result = search(str(file))
    assert result.run == copied_run
    assert outcome(result) == outcome(finished_run)
    made, loaded = make_config(**settings), load_config(file)
    assert checks._as_config(settings) == checks._as_config(made) == made
    assert checks._as_config(file) == checks._as_config(str(file)) == loaded
    assert (loaded.out, loaded.trials) == (made.out, made.trials)
    with pytest.raises(ConfigError, match="config is an int; give settings"):
        search(3)  # type: ignore[arg-type]
