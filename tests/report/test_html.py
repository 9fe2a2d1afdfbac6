"""The page holds what the run directory and the saved models do, opens offline, and shows unfinished runs."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from safetensors.numpy import load_file

from autoprune.cli.main import main
from autoprune.errors import RunError
from autoprune.report.headline import headline
from autoprune.report.html import chart_data, render
from autoprune.report.run_summary import CURVE_POINTS, LOSS_POINTS, _losses, curve, read_run_summary


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


def study_of(run):
    storage = JournalStorage(JournalFileBackend(str(run / "study.journal")))
    return optuna.load_study(study_name="autoprune", storage=storage)


def trials_of(run):
    """What the study holds of each trial that was asked for, and the mean mAP of the complete ones."""
    noted = {trial.number: trial.user_attrs for trial in study_of(run).trials}
    again = {notes["repeat_of"]: notes["rung_1"]["map"] for notes in noted.values() if "repeat_of" in notes}
    assert again
    asked = {
        n: notes for n, notes in noted.items() if not {"same_as", "requeued", "repeat_of"} & notes.keys()
    }
    means = {
        number: np.mean([notes["rung_1"]["map"], *([again[number]] if number in again else [])])
        for number, notes in asked.items()
        if "rung_1" in notes
    }
    return asked, means


@pytest.mark.slow
def test_trials_are_those_of_the_study(run, page):
    expected, means = trials_of(run)
    assert {trial["number"] for trial in page.data["trials"]} == expected.keys()
    for trial in page.data["trials"]:
        found = expected[trial["number"]]
        maps = [found[name]["map"] for name in ("rung_0", "rung_1") if name in found]
        assert trial["rungs"] == maps
        assert trial["map"] == pytest.approx(means.get(trial["number"], maps[-1]))
        assert trial["state"] == ("complete" if len(maps) == 2 else "stopped")
    front = {int(row["trial"]) for row in csv.DictReader((run / "front.csv").read_text().splitlines())}
    assert {trial["number"] for trial in page.data["trials"] if trial["front"]} == front


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
    for number, found in recovered.items():
        folder = run / f"recovered/trial-{number:04d}"
        assert found["map"] == json.loads((folder / "metrics.json").read_text())["metrics"]["map"]
        losses = [float(line.split(",")[1]) for line in (folder / "losses.csv").read_text().split()[1:]]
        pairs = page.data["losses"][str(number)]
        assert [step for step, _ in pairs] == [1, 2]
        assert [loss for _, loss in pairs] == pytest.approx(losses, abs=1e-5)
    assert page.data["check"] == json.loads((run / "proxies.json").read_text())
    assert page.data["check"]["verdict"] in page.text


def test_the_first_sentence_compares_the_best_recovered_detector_with_the_dense_one(run, page):
    facts = read_run_summary(run)
    top = headline(facts)
    metrics = json.loads((run / f"recovered/trial-{top.trial:04d}/metrics.json").read_text())
    pruned, dense = (round(100 * m["metrics"]["map"], 1) for m in (metrics, metrics["dense"]))
    fraction = round(100 * metrics["gflops"] / metrics["dense"]["gflops"])
    assert f"does {fraction}% of the work" in top.sentence
    assert f"reaches {pruned} mAP" in top.sentence
    assert f"dense one's {dense}" in top.sentence
    if pruned != dense:
        assert f"{abs(pruned - dense):.1f} points {'below' if pruned < dense else 'above'}" in top.sentence
    assert top.sentence in page.text
    front = {point.trial for point in facts.result.front}
    rivals = [found["metrics"]["map"] for number, found in facts.recovered.items() if number in front]
    assert not rivals or metrics["metrics"]["map"] == max(rivals)


def test_the_budget_is_a_share_of_the_dense_detector(page):
    dense = page.data["dense"]["gflops"]
    assert page.data["budgets"]["gflops"] == pytest.approx([0.6 * dense])


@pytest.mark.parametrize(
    ("asked", "axis"),
    [
        ({}, "gflops"),
        ({"budget_gflops": (), "budget_latency_ms": "60%"}, "latency_ms"),
        ({"budget_latency_ms": "60%"}, "gflops"),
        ({"budget_gflops": (), "objectives": ("map", "latency_ms")}, "latency_ms"),
    ],
)
def test_the_front_is_shown_over_the_cost_that_was_asked_for(run, asked, axis):
    facts = read_run_summary(run)
    result = replace(facts.result, dense={**facts.result.dense, "latency_ms": 12.0})
    facts = replace(facts, result=result, config=facts.config.model_copy(update=asked))
    assert chart_data(facts, None)["axis"] == axis


def test_latencies_are_those_that_the_recovery_measured(run, page):
    best = page.data["best"]
    (row,) = json.loads((run / f"recovered/trial-{best:04d}/latency.json").read_text())
    assert row["label"] in page.text
    shown = re.search(r"latency milliseconds \D*([\d.]+) → ([\d.]+)", page.text)
    found = [float(value) for value in shown.groups()]
    assert found == pytest.approx([row["dense_ms"], row["median_ms"]], abs=0.06)


def test_the_page_needs_nothing_beside_it(page):
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)


def test_names_from_the_data_are_text_and_no_markup(run, tmp_path):
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


def test_a_curve_is_what_the_least_important_channels_hold():
    scores = np.random.default_rng(0).exponential(size=CURVE_POINTS - 1)
    found = curve(scores)
    for removed in range(CURVE_POINTS):  # one channel a point
        least = sum(sorted(scores)[:removed])
        assert found[removed] == pytest.approx(least / sum(scores), abs=1e-4)
    assert curve(np.zeros(8)) == pytest.approx(np.linspace(0, 1, CURVE_POINTS))


def test_a_long_training_is_drawn_by_its_means(tmp_path):
    values = np.random.default_rng(1).uniform(size=4 * LOSS_POINTS)
    file = tmp_path / "losses.csv"
    file.write_text("step,loss\n" + "".join(f"{k},{v:.9g}\n" for k, v in enumerate(values, 1)))
    found = _losses(file)
    assert [step for step, _ in found] == list(range(4, 4 * LOSS_POINTS + 1, 4))
    assert [loss for _, loss in found] == pytest.approx(
        [values[k - 4 : k].mean() for k, _ in found], abs=1e-5
    )


def test_the_csv_has_a_row_for_every_trial(run, tmp_path, capsys):
    assert main(["report", str(run), "--to", str(tmp_path / "page.html"), "--csv", "--png"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "front.png", "trials.csv"}
    assert str(tmp_path / "trials.csv") in capsys.readouterr().out
    rows = {
        int(row["trial"]): row for row in csv.DictReader((tmp_path / "trials.csv").read_text().splitlines())
    }
    trials, means = trials_of(run)
    assert rows.keys() == trials.keys()
    assert {row["measured"] for row in rows.values() if row["state"] == "complete"} == {"1", "2"}
    for number, notes in trials.items():
        assert float(rows[number]["map"]) == pytest.approx(means.get(number, notes["rung_0"]["map"]))
        assert float(rows[number]["map_rung_0"]) == notes["rung_0"]["map"]
        for name, width in notes["widths"].items():
            assert int(rows[number][f"width:{name}"]) == width


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
    assert "No trial has been started." in page.text
    assert f"autoprune search --config {unfinished}/config.yaml" in page.text
    assert "retinanet_resnet18_fpn" in page.text
    assert "image_cache_gib" in page.text
    assert page.data["trials"] == []


def test_a_search_that_was_killed_shows_what_is_finished(unfinished):
    journal = unfinished / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    first = next(place for place, line in enumerate(lines) if '"rung_0"' in line)
    journal.write_text("".join(lines[: first + 1]) + lines[first + 1][: len(lines[first + 1]) // 2])
    shutil.rmtree(unfinished / "policies")
    page = Reader(render(read_run_summary(unfinished)))
    assert "No trial has come through: 1 of 5 trials were started." in page.text
    (trial,) = page.data["trials"]
    assert trial["state"] == "running"
    assert len(trial["rungs"]) == 1


def test_without_a_recovery_the_proxy_is_called_one(unfinished):
    page = Reader(render(read_run_summary(unfinished)))
    assert "has a proxy mAP of" in page.text
    assert re.search(r"autoprune recover \S+ --trial \d+", page.text)
    assert "article" not in page.tags


def test_trials_that_failed_say_why(unfinished):
    study = study_of(unfinished)
    trial = study.ask()
    study._storage.set_trial_user_attr(trial._trial_id, "reason", "the loss is not finite at step 3")
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    page = Reader(render(read_run_summary(unfinished)))
    assert "failed: the loss is not finite at step 3" in page.text


def test_images_that_are_gone_are_named(run, tmp_path):
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
    ("arguments", "said"), [(["nowhere"], "is not a run directory"), (["."], "is not a run directory")]
)
def test_what_is_no_run_is_refused(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.iterdir())


def test_a_broken_file_is_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = next(copy.glob("recovered/*/metrics.json"))
    file.write_text("{")
    with pytest.raises(RunError, match=r"metrics\.json can't be read .* delete .*trial-"):
        read_run_summary(copy)
