import io
import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from autoprune.cli.main import main
from autoprune.cli.search import proxies_table
from autoprune.errors import RunError
from autoprune.recovery import recover as recovery
from autoprune.recovery.proxy_check import (
    Agreement,
    Estimate,
    check_proxies,
    choose_trials,
    compare,
    estimate,
    kendall,
    load_check,
    spearman,
    spread,
    verdict,
)
from autoprune.search.pipeline import search
from autoprune.study.records import Record


def record(number, *maps, state="complete", budget=1.0, **more):
    rungs = tuple({"map": value, **more} for value in maps)
    return Record(number, state, "sampler", budget, {"a": number}, rungs)


def test_correlations_worked_out_by_hand():
    first, second = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    assert spearman(first, second) == pytest.approx(1 - 6 * 4 / (5 * 24))  # differences of ranks: four ones
    assert kendall(first, second) == pytest.approx((8 - 2) / 10)  # 8 pairs agree, 2 do not
    tied, other = np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 2, 3])
    assert kendall(tied, other) == pytest.approx(4 / 5)  # 4 agree; one tie in each, of 6 pairs
    opposite = estimate(spearman, first, -first)
    assert [opposite.value, opposite.low, opposite.high] == pytest.approx([-1, -1, -1])


def test_the_interval_is_that_of_the_paired_bootstrap():
    random = np.random.default_rng(3)
    first = random.normal(size=14)
    second = first + random.normal(size=14)
    found = estimate(spearman, first, second)
    expected = stats.bootstrap(
        (first, second), spearman, paired=True, vectorized=False, n_resamples=4000, method="percentile", rng=7
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.06)
    assert found.high == pytest.approx(expected.high, abs=0.06)


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(-1, 1, width=16)), min_size=2, max_size=15))
def test_correlations_are_scipys(pairs):
    first, second = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    with warnings.catch_warnings(action="ignore", category=stats.ConstantInputWarning):
        rho, tau = stats.spearmanr(first, second).statistic, stats.kendalltau(first, second).statistic
    assert spearman(first, second) == pytest.approx(rho, nan_ok=True)
    assert kendall(first, second) == pytest.approx(tau, nan_ok=True)
    rows = spearman(np.stack([first, second]), np.stack([second, second]))
    assert rows[0] == pytest.approx(rho, nan_ok=True)


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


def test_each_trial_counts_at_the_rungs_that_it_reached_and_a_lower_loss_is_better():
    trials = [record(n, 0.1 * n, 0.4 - 0.1 * n, loss=5.0 - n) for n in range(3)]
    trials.append(record(3, 0.5, state="stopped", loss=1.0))
    found = compare(trials, [0.1, 0.2, 0.3, 0.4], (0, 50))
    seen = {(a.rung, a.score): (a.steps, a.trials, a.spearman.value) for a in found}
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
        (Estimate(None, None, None), "tell nothing apart"),
    ],
)
def test_the_verdict_is_one_sentence_in_plain_words(estimated, said):
    sentence = verdict(Agreement(1, 50, "map", 12, estimated, estimated))
    assert said in sentence
    assert sentence.startswith("These proxies")
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")


def test_scores_that_are_all_equal_have_no_correlation():
    found = compare([record(n, 0.2) for n in range(4)], [0.1, 0.2, 0.3, 0.4], (0,))
    assert found[0].spearman == found[0].kendall == Estimate(None, None, None)
    assert "tell nothing apart" in verdict(found[0])


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
    checked_run, monkeypatch, capsys
):
    monkeypatch.setattr(recovery, "train", lambda *_, **__: pytest.fail("it was recovered already"))
    before = load_check(checked_run)
    assert check_proxies(checked_run, 4) == before
    arguments = ["search", "--config", str(checked_run / "config.yaml"), "--check-proxies", "4"]
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
