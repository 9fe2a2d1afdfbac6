"""The regression against a plain least-squares solver; the sampler against known worths of channels."""

import itertools
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from scipy.stats import multivariate_normal

from autoprune.cost.budget import Budget
from autoprune.search.plan import SpacePlan
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.resolve import resolve
from autoprune.study.ledger import Ledger
from autoprune.study.records import Record
from autoprune.study.thompson import (
    BEST,
    FURTHEST,
    NOISES,
    ThompsonSampler,
    evidence,
    likeliest_noise,
    posterior,
)

from ..conftest import ledger_settings


def test_the_posterior_is_that_of_bayesian_linear_regression():
    random = np.random.default_rng(0)
    removed, lost, noise = random.random((7, 4)), random.random(7), random.random(7) + 0.1
    mean, covariance = posterior(removed, lost, noise, spread=0.3)

    # Its mode, as the least squares of the trials and of the prior's four "trials" w = 1.
    rows = np.concatenate([removed / noise[:, None], np.eye(4) / 0.3])
    right = np.concatenate([lost / noise, np.full(4, 1 / 0.3)])
    np.testing.assert_allclose(mean, np.linalg.lstsq(rows, right, rcond=None)[0], rtol=1e-10)
    # Its covariance, as the prior's minus what the trials explain (Woodbury).
    gain = 0.09 * removed.T @ np.linalg.inv(0.09 * removed @ removed.T + np.diag(noise**2))
    np.testing.assert_allclose(covariance, 0.09 * (np.eye(4) - gain @ removed), rtol=1e-8, atol=1e-12)


def test_the_noise_is_what_the_weights_cannot_explain():
    random = np.random.default_rng(1)
    removed, weights = random.random((40, 5)), 1 + 0.5 * random.standard_normal(5)
    for noise in (0.05, 0.4):
        lost = removed @ weights + noise * random.standard_normal(40)
        assert likeliest_noise(removed, lost) == pytest.approx(noise, rel=0.35)

    def log_likelihood(noise):
        covariance = 0.25 * removed @ removed.T + noise**2 * np.eye(40)
        return multivariate_normal(removed.sum(axis=1), covariance).logpdf(lost)

    assert likeliest_noise(removed, lost) == max(NOISES, key=log_likelihood)


def test_without_trials_the_prior_is_drawn_from():
    mean, covariance = posterior(np.zeros((0, 3)), np.zeros(0), np.zeros(0), spread=0.5)
    np.testing.assert_array_equal(mean, np.ones(3))
    np.testing.assert_allclose(covariance, 0.25 * np.eye(3))


@pytest.fixture
def make_plan(chain, importance_of):
    def make(fractions=(0.5,), free=False):
        graph = chain(dense=(64, 96, 128, 160, 192, 256))
        file = SpaceFile(
            model="chain", input_size=(64, 64), round_to=4, groups=(GroupRule(match="body.*", max_ratio=0.9),)
        )
        space = resolve(file, graph, importance_of(graph))
        dense = float(graph.cost.flops(graph.cost.dense)) / 1e9
        bounds = [()] if free else [(Budget("gflops", fraction * dense),) for fraction in fractions]
        return SpacePlan(space, bounds, {}, {}, "taylor")

    return make


def run(ledger, worth, dense_map=0.5):
    """A search in which each variable's importance is off by a factor, and mAP is exact."""
    ledger.note("dense", {"map": dense_map})
    lost = []
    while (candidate := ledger.ask()) is not None:
        lost.append(float(worth @ ledger.plan.removed([candidate.widths])[0]))
        ledger.report(candidate.number, 0, {"map": dense_map - lost[-1], "gflops": 1.0})
    return np.array(lost)


def test_it_learns_which_scores_are_wrong(make_plan, tmp_path):
    plan = make_plan()
    worth = np.array([2.0, 0.4, 1.0, 1.6, 0.3, 1.5])
    ones = np.ones(6)

    def exact(weights):
        widths = plan.widths(plan.cheapest(weights, 0, 0.0), 0)
        return float(worth @ plan.removed([widths])[0])

    scale = 0.1 / exact(worth)
    lost = {}
    for sampler in ("thompson", "random"):
        settings = ledger_settings(trials=24, sampler=sampler)
        lost[sampler] = run(Ledger(tmp_path / sampler, "s", plan, settings), scale * worth) / scale
    best, believed = exact(worth), exact(ones)
    assert believed > 1.2 * best  # else there is nothing to learn
    assert lost["thompson"].min() < best + 0.1 * (believed - best)
    assert lost["thompson"].min() < lost["random"].min()
    assert np.median(lost["thompson"][12:]) < np.median(lost["thompson"][:12])


def test_every_proposal_is_drawn_for_a_budget(make_plan):
    plan = make_plan(fractions=(0.6, 0.4))
    study = optuna.create_study(directions=["maximize", "minimize"])
    budgets = []
    for seed in range(12):
        study.sampler = ThompsonSampler(seed, plan)
        distributions = study.sampler.infer_relative_search_space(study, None)
        params = study.ask(distributions).params
        widths = plan.widths(np.array([params[name] for name in plan.variables]), params["budget"])
        used = plan.space.cost("gflops", np.array(list(widths.values()))) / plan.budgets[params["budget"]]
        assert 0.95 < used <= 1
        budgets.append(params["budget"])
    assert set(budgets) == {0, 1}


def test_budgets_get_equally_many_proposals(make_plan, tmp_path):
    plan = make_plan(fractions=(0.6, 0.5, 0.4))
    ledger = Ledger(tmp_path / "journal", "s", plan, ledger_settings(trials=12, sampler="thompson"))
    run(ledger, np.ones(6))
    counts = Counter(record.budget for record in ledger.records())
    assert [counts[limit] for limit in plan.budgets] == [4, 4, 4]


@pytest.mark.parametrize("reach", [1, 3])
def test_near_a_policy_no_exchange_of_levels_removes_less(make_plan, reach):
    """Against all policies of the neighborhood with at most two variables moved."""
    plan = make_plan()
    random = np.random.default_rng(0)
    near = plan.widths(random.random(6), 0)
    weights = 1 + 0.5 * random.random(6)
    best = plan.widths(plan.cheapest(weights, 0, 0.0, near, reach), 0)
    bound = plan.bounds[0]
    assert float(plan.space.budget_usage(plan.space.as_array(best), bound)) <= 1
    # projecting onto the budget fills what is left of it, by a step or two
    assert max(abs(best[name] - near[name]) for name in near) <= 4 * (reach + 2)

    def removed(widths):
        return float(weights @ plan.removed([widths])[0])

    assert removed(best) < removed(near)
    for first, second in itertools.permutations(near, 2):
        for up, down in itertools.product(range(reach + 1), repeat=2):
            other = {**near, first: near[first] + 4 * up, second: near[second] - 4 * down}
            array = plan.space.as_array(other)
            within = (array <= plan.space.dense).all() and (array >= plan.space.lowest).all()
            if within and float(plan.space.budget_usage(array, bound)) <= 1:
                assert removed(best) <= removed(other) * 1.02


def test_half_of_the_proposals_stay_near_the_best_trials(make_plan, tmp_path):
    plan = make_plan()
    ledger = Ledger(tmp_path / "journal", "s", plan, ledger_settings(trials=6, sampler="random"))
    run(ledger, np.ones(6))
    records = ledger.records()
    best = sorted(records, key=lambda record: -record.rungs[-1]["map"])[:BEST]
    near_and_reach = []

    def cheapest(weights, budget, level, near, reach):
        near_and_reach.append((near, reach))
        return np.full(6, 0.5)

    study = optuna.create_study(directions=["maximize", "minimize"])
    known = SimpleNamespace(
        variables=plan.variables,
        budgets=plan.budgets,
        removed=plan.removed,
        widths=lambda fractions, budget: {"new": len(near_and_reach)},
        cheapest=cheapest,
    )
    for seed in range(60):
        ThompsonSampler(seed, known, records).sample_relative(study, None, {})
    local = [(near, reach) for near, reach in near_and_reach if near is not None]
    assert len(near_and_reach) == 60
    assert 15 < len(local) < 45
    assert all(near in [record.widths for record in best] for near, _ in local)
    assert len({tuple(near.items()) for near, _ in local}) == BEST
    assert {reach for _, reach in local} == set(range(1, FURTHEST + 1))


def test_free_costs_are_spread_over_what_can_be_reached(make_plan):
    plan = make_plan(free=True)
    costs = []
    for level in (0.05, 0.5, 0.9):
        widths = plan.widths(plan.cheapest(np.ones(6), 0, level), 0)
        costs.append(float(plan.space.cost("gflops", np.array(list(widths.values())))))
    least, dense = (float(plan.space.cost("gflops", w)) for w in (plan.space.lowest, plan.space.dense))
    np.testing.assert_allclose((np.array(costs) - least) / (dense - least), [0.05, 0.5, 0.9], atol=0.03)


def test_rungs_are_brought_to_one_unit(make_plan, tmp_path):
    plan = make_plan()
    settings = ledger_settings(trials=12, sampler="random", rungs=2)
    ledger = Ledger(tmp_path / "study", "s", plan, settings)
    ledger.note("dense", {"map": 0.5})
    while (candidate := ledger.ask()) is not None:
        lost = float(plan.removed([candidate.widths]).sum())
        number, lost = candidate.number, lost / 1e4
        if ledger.report(number, 0, {"map": 0.5 - 2 * lost, "gflops": 1.0}):
            ledger.report(number, 1, {"map": 0.5 - lost, "gflops": 1.0})
    assert {len(record.rungs) for record in ledger.finished()} == {1, 2}
    removed, lost, noise = evidence(ledger.records(), plan, 0.5)
    assert len(removed) == 12
    np.testing.assert_allclose(removed.sum(axis=1), lost, rtol=1e-9)
    assert (noise > 0).all()


def test_trials_that_mostly_remove_what_no_score_values_say_nothing(make_plan):
    plan = make_plan()
    widths = [plan.space.as_dict(each) for each in (plan.space.dense, plan.space.dense, plan.space.lowest)]
    trials = [
        Record(number, "complete", "sampler", 1.0, each, ({"map": 0.5 - 0.1 * number},))
        for number, each in enumerate(widths)
    ]
    assert [float(plan.removed([each]).sum()) > 0 for each in widths] == [False, False, True]
    removed, _, _ = evidence(trials, plan, 0.5)
    assert len(removed) == 0


def test_a_resumed_search_proposes_the_same(make_plan, tmp_path):
    open_ledger = partial(Ledger, name="s", plan=make_plan())
    whole = open_ledger(tmp_path / "a", settings=ledger_settings(trials=10, sampler="thompson"))
    worth = 0.01 * np.array([3.0, 0.3, 1.0, 2.0, 0.2, 1.5])
    run(whole, worth)
    for trials in (4, 10):
        run(open_ledger(tmp_path / "b", settings=ledger_settings(trials=trials, sampler="thompson")), worth)
    again = open_ledger(tmp_path / "b", settings=ledger_settings(trials=10, sampler="thompson"))
    assert [r.widths for r in again.records()] == [r.widths for r in whole.records()]
