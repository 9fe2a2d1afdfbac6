"""The page agrees with the run directory and the saved models, opens offline, and shows unfinished runs."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import optuna
import pytest
from safetensors.numpy import load_file

from autoprune.cli.main import main
from autoprune.report.html import chart_data, render
from autoprune.report.run_summary import read_run_summary


class Reader(HTMLParser):
    """Collects a page's text, its attributes that name other files, and its embedded JSON."""

    def __init__(self, page):
        super().__init__()
        self.links, self.words, self.tags, self.data, self._open = [], [], [], None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open = (tag, dict(attributes).get("id"))
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if self._open and self._open[0] == tag:
            self._open = ("", None)

    def handle_data(self, data):
        if self._open == ("script", "data"):
            self.data = json.loads(data)
        elif self._open and self._open[0] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page(run):
    return Reader(render(read_run_summary(run)))


def test_notes_are_below_the_headline(run):
    shown = Reader(render(read_run_summary(run), notes=["5 < 6 on the test images"])).text
    assert shown.index("5 < 6 on the test images") < shown.index("The front")


@pytest.mark.slow
def test_trials_are_those_of_the_study(run, page, study_trials):
    expected, means = study_trials
    assert {trial["number"] for trial in page.data["trials"]} == expected.keys()
    for trial in page.data["trials"]:
        attributes = expected[trial["number"]]
        maps = [attributes[name]["map"] for name in ("rung_0", "rung_1") if name in attributes]
        assert trial["rungs"] == maps
        assert trial["map"] == pytest.approx(means.get(trial["number"], maps[-1]))
        assert trial["state"] == ("complete" if len(maps) == 2 else "stopped")
    front = {int(row["trial"]) for row in csv.DictReader((run / "front.csv").read_text().splitlines())}
    assert {trial["number"] for trial in page.data["trials"] if trial["front"]} == front


def test_the_map_of_a_trial_that_racing_stopped_is_marked_as_an_estimate(make_summary, make_record):
    raced = make_record(1, map=0.314, state="stopped")
    raced = replace(raced, rungs=({**raced.rungs[0], "raced_images": 48},))
    summary = make_summary([make_record(0, map=0.271), raced])
    (summary.run / "config.yaml").write_text("")
    text = Reader(render(summary)).text
    assert "31.4 (estimated)" in text
    assert "27.1" in text
    assert "27.1 (estimated)" not in text


def test_widths_are_those_of_the_weights(run, page):
    dense = load_file(next(run.glob("recovered/*")).parent.parent / "importance.safetensors")
    names = [group["name"] for group in page.data["groups"]]
    assert {len(scores) for key, scores in dense.items()} <= {group["width"] for group in page.data["groups"]}
    for trial in page.data["trials"]:
        if trial["recovered"] is None:
            continue
        weights = load_file(run / f"recovered/trial-{trial['number']:04d}/model.safetensors")
        for name, width in zip(names, trial["widths"], strict=True):
            assert weights[f"{name}.weight"].shape[0] == width


def test_recoveries_losses_and_the_check_are_there(run, page):
    recovered = {trial["number"]: trial["recovered"] for trial in page.data["trials"] if trial["recovered"]}
    assert len(recovered) == 4
    for number, shown in recovered.items():
        folder = run / f"recovered/trial-{number:04d}"
        assert shown["map"] == json.loads((folder / "metrics.json").read_text())["metrics"]["map"]
        losses = [float(line.split(",")[1]) for line in (folder / "losses.csv").read_text().split()[1:]]
        pairs = page.data["losses"][str(number)]
        assert [step for step, _ in pairs] == [1, 2]
        assert [loss for _, loss in pairs] == pytest.approx(losses, abs=1e-5)
    assert page.data["check"] == json.loads((run / "proxies.json").read_text())
    assert page.data["check"]["verdict"] in page.text


def test_the_budget_is_a_fraction_of_the_dense_detector(page):
    dense = page.data["dense"]["gflops"]
    assert page.data["budgets"]["gflops"] == pytest.approx([0.6 * dense])


@pytest.mark.parametrize(
    ("settings", "axis"),
    [
        ({}, "gflops"),
        ({"budget_gflops": (), "budget_latency_ms": "60%"}, "latency_ms"),
        ({"budget_latency_ms": "60%"}, "gflops"),
        ({"budget_gflops": (), "objectives": ("map", "latency_ms")}, "latency_ms"),
    ],
)
def test_the_front_is_shown_over_the_cost_of_the_budget(run, settings, axis):
    summary = read_run_summary(run)
    result = replace(summary.result, dense={**summary.result.dense, "latency_ms": 12.0})
    summary = replace(summary, result=result, config=summary.config.model_copy(update=settings))
    assert chart_data(summary, None)["axis"] == axis


def test_latencies_are_those_that_the_recovery_measured(run, page):
    best = page.data["best"]
    (row,) = json.loads((run / f"recovered/trial-{best:04d}/latency.json").read_text())
    assert row["label"] in page.text
    shown = re.search(r"latency milliseconds \D*([\d.]+) → ([\d.]+)", page.text)
    values = [float(value) for value in shown.groups()]
    assert values == pytest.approx([row["dense_ms"], row["median_ms"]], abs=0.06)


def test_the_page_needs_nothing_beside_it(page):
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)


def test_names_from_the_data_are_text_not_markup(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    evil = "</script><img src=x onerror=alert(1)>"
    for file in copy.glob("recovered/*/*.json"):
        text = file.read_text().replace('"circle"', json.dumps(evil)).replace('"square"', json.dumps(evil))
        file.write_text(text)
    check = json.loads((copy / "proxies.json").read_text())
    check["trials"][0]["origin"] = evil
    (copy / "proxies.json").write_text(json.dumps(check))
    page = Reader(render(read_run_summary(copy)))
    assert "img" not in page.tags
    assert evil in page.text
    assert page.data["check"]["trials"][0]["origin"] == evil


# unfinished runs


@pytest.fixture
def unfinished(run, tmp_path):
    """A copy of the run without what came last."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("recovered", "proxies.json"))
    return copy


def test_before_the_first_trial_the_settings_are_shown(unfinished):
    for name in ("study.journal", "importance.safetensors", "space.yaml", "front.csv"):
        (unfinished / name).unlink()
    shutil.rmtree(unfinished / "policies")
    page = Reader(render(read_run_summary(unfinished)))
    assert "No trial has started." in page.text
    assert f"autoprune search --config {unfinished}/config.yaml" in page.text
    assert "retinanet_resnet18_fpn" in page.text
    assert "image_cache_gib" in page.text
    assert "config.yaml: what the run began with" in page.text
    assert page.data["trials"] == []


def test_a_search_that_was_killed_shows_what_is_finished(unfinished):
    journal = unfinished / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if '"rung_0"' in line)
    journal.write_text("".join(lines[: first + 1]) + lines[first + 1][: len(lines[first + 1]) // 2])
    shutil.rmtree(unfinished / "policies")
    page = Reader(render(read_run_summary(unfinished)))
    assert "No trial is complete yet: 1 of 5 trials were started." in page.text
    (trial,) = page.data["trials"]
    assert trial["state"] == "interrupted"
    assert len(trial["rungs"]) == 1


def test_without_a_recovery_the_proxy_is_called_one(unfinished):
    page = Reader(render(read_run_summary(unfinished)))
    assert "and a proxy mAP of" in page.text
    assert re.search(r"autoprune recover \S+ --trial \d+", page.text)
    assert "article" not in page.tags


def test_trials_that_failed_say_why(unfinished, open_study):
    study = open_study(unfinished)
    trial = study.ask()
    study._storage.set_trial_user_attr(trial._trial_id, "reason", "the loss is not finite at step 3")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    page = Reader(render(read_run_summary(unfinished)))
    assert "failed: the loss is not finite at step 3" in page.text


def test_missing_images_are_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for file in copy.glob("recovered/*/samples.json"):
        content = json.loads(file.read_text())
        content["images"][0]["file"] = str(tmp_path / "gone.jpg")
        file.write_text(json.dumps(content))
    page = Reader(render(read_run_summary(copy)))
    assert "gone.jpg" in page.text
    assert page.tags.count("article") == len(content["images"]) - 1
    assert Reader(render(read_run_summary(copy), images=False)).tags.count("article") == 0


@pytest.mark.parametrize(
    ("arguments", "message"), [(["nowhere"], "is not a run directory"), (["."], "is not a run directory")]
)
def test_what_is_not_a_run_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())
