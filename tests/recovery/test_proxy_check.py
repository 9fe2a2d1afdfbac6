"""Which trials check the proxies, what their ranks say, and in which words."""

import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console
from scipy import stats

from autoprune.cli.main import main
from autoprune.cli.search import proxies_table
from autoprune.data.rivals import RACED
from autoprune.errors import RunError
from autoprune.recovery import recover_policy
from autoprune.recovery.proxy_check import (
    Agreement,
    check_proxies,
    choose_trials,
    compare,
    load_check,
    spread,
    verdict,
)
from autoprune.recovery.rank_correlation import Estimate
from autoprune.search.pipeline import search
from autoprune.study.records import Record


def record(number, *maps, state="complete", budget=1.0, **more):
    rungs = tuple({"map": value, **more} for value in maps)
    return Record(number, state, "sampler", budget, {"a": number}, rungs)


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_the_chosen_values_lie_evenly_over_the_range(count):
    values = [0.31, 0.30, 0.32, 0.33, 0.1, 0.5, 0.2, 0.4, 0.305]
    chosen = [values[place] for place in spread(values, count)]
    assert len(set(chosen)) == count
    if count > 1:
        assert {min(chosen), max(chosen)} == {0.1, 0.5}
    if count == 4:
        assert sorted(chosen) == [0.1, 0.2, 0.4, 0.5]


def test_trials_of_one_budget_are_compared_and_stopped_ones_only_join_where_too_few_are_complete():
    trials = [record(0, 0.1, 0.2), record(1, 0.2, 0.4), record(2, 0.3, 0.6, budget=2.0)]
    trials += [record(3, 0.05, state="stopped"), record(4, state="failed"), record(5, 0.01, state="stopped")]
    trials.append(Record(6, "complete", "sampler", 1.0, {}, same_as=1))
    assert [r.number for r in choose_trials(trials, 2)] == [0, 1]
    assert [r.number for r in choose_trials(trials, 3)] == [0, 1, 5]
    assert [r.number for r in choose_trials(trials, 9)] == [0, 1, 3, 5]
    assert choose_trials(trials[3:], 3) == []
    raced = [record(7 + n, 0.04, state="stopped", raced_images=16) for n in range(4)]
    assert [r.number for r in choose_trials([*trials, *raced], 9)] == [0, 1, 3, 5]


def test_each_trial_counts_at_the_rungs_that_it_reached_and_a_lower_loss_is_better():
    trials = [record(n, 0.1 * n, 0.4 - 0.1 * n, loss=5.0 - n) for n in range(3)]
    trials.append(record(3, 0.5, state="stopped", loss=1.0))
    agreements = compare(trials, [0.1, 0.2, 0.3, 0.4], (0, 50))
    seen = {(a.rung, a.score): (a.steps, a.trials, a.spearman.value) for a in agreements}
    assert seen[0, "map"] == (0, 4, pytest.approx(1.0))
    assert seen[0, "loss"] == (0, 4, pytest.approx(1.0))
    assert seen[1, "map"] == (50, 3, pytest.approx(-1.0))
    assert (0, "features") not in seen


@pytest.mark.parametrize(
    ("estimated", "said"),
    [
        (Estimate(0.9, 0.7, 0.98), "can be trusted:"),
        (Estimate(0.9, -0.1, 0.98), "cannot be trusted"),
        (Estimate(0.6, 0.2, 0.9), "trusted roughly"),
        (Estimate(0.3, 0.1, 0.9), "cannot be trusted"),
        (Estimate(None, None, None), "do not distinguish the trials"),
    ],
)
def test_the_verdict_is_one_sentence_in_plain_words(estimated, said):
    sentence = verdict(Agreement(1, 50, "map", 12, estimated, estimated))
    assert said in sentence
    assert sentence.startswith("These proxies")
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")


def test_scores_that_are_all_equal_have_no_correlation():
    (agreement,) = compare([record(n, 0.2) for n in range(4)], [0.1, 0.2, 0.3, 0.4], (0,))
    assert agreement.spearman == agreement.kendall == Estimate(None, None, None)
    assert "do not distinguish the trials" in verdict(agreement)


@pytest.mark.slow
def test_a_search_checks_its_proxies_against_full_recoveries(checked_run, demo_settings):
    check = load_check(checked_run)
    assert check.steps == demo_settings["steps"]
    assert len(check.trials) == 4
    for trial in check.trials:
        folder = checked_run / "recovered" / f"trial-{trial['trial']:04d}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert trial["recovered_map"] == metrics["metrics"]["map"]
    top = next(a for a in check.agreements if (a.rung, a.score) == (1, "map"))
    maps = [trial["rungs"][1]["map"] for trial in check.trials]
    expected = stats.spearmanr(maps, [trial["recovered_map"] for trial in check.trials]).statistic
    assert top.spearman.value == pytest.approx(expected)
    assert {(a.rung, a.score) for a in check.agreements} >= {(0, "map"), (0, "loss"), (0, "features")}


def test_a_finished_check_is_not_made_again_and_a_finished_run_can_be_checked_by_the_command(
    checked_run, tmp_path, monkeypatch, capsys
):
    run = shutil.copytree(checked_run, tmp_path / "run")
    monkeypatch.setattr(recover_policy, "train", lambda *_, **__: pytest.fail("it was recovered already"))
    before = load_check(run)
    assert check_proxies(run, 4) == before
    config = ["--config", str(run / "config.yaml"), "--out", str(run)]
    arguments = ["search", *config, "--check-proxies", "4"]
    assert main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Spearman" in printed
    assert before.verdict in printed


def test_the_table_shows_every_rung_and_score(checked_run):
    console = Console(file=io.StringIO(), width=120)
    check = load_check(checked_run)
    console.print(proxies_table(check))
    printed = console.file.getvalue()
    for agreement in check.agreements:
        assert str(agreement.spearman) in printed
        assert str(agreement.kendall) in printed


def test_too_few_trials_to_compare_are_refused(demo_settings, tmp_path):
    settings = {**demo_settings, "trials": 2, "rungs": (0,), "out": tmp_path / "run"}
    search(settings)
    with pytest.raises(RunError, match="has 2 trials to compare at one budget, 4 are the least"):
        check_proxies(tmp_path / "run", 12)


def test_what_a_race_estimated_is_no_proxy():
    """It is given up after a part of the images, at most at its rival's mAP."""
    trials = [record(n, 0.1 * n, 0.2 + 0.1 * n) for n in range(4)]
    raced = record(4, 0.9, 0.0, state="stopped")
    raced = dataclasses.replace(raced, rungs=(raced.rungs[0], {**raced.rungs[1], RACED: 32}))
    recovered = [0.1, 0.2, 0.3, 0.4, 0.5]
    lower, top = compare([*trials, raced], recovered, (0, 50))
    assert (lower.trials, top.trials) == (5, 4)
    assert top.spearman.value == pytest.approx(stats.spearmanr([0.2, 0.3, 0.4, 0.5], recovered[:4]).statistic)
