"""Rank correlations are those of scipy.stats, and so are their bootstrap intervals."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autoprune.recovery.rank_correlation import Estimate, estimate, kendall, spearman


def test_correlations_worked_out_by_hand():
    first, second = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    assert spearman(first, second) == pytest.approx(1 - 6 * 4 / (5 * 24))  # differences of ranks: four ones
    assert kendall(first, second) == pytest.approx((8 - 2) / 10)  # 8 pairs agree, 2 do not
    tied, other = np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 2, 3])
    assert kendall(tied, other) == pytest.approx(4 / 5)  # 4 agree; one tie in each, of 6 pairs
    opposite = estimate(spearman, first, -first)
    assert [opposite.value, opposite.low, opposite.high] == pytest.approx([-1, -1, -1])


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(-1, 1, width=16)), min_size=2, max_size=15))
def test_correlations_are_scipys(pairs):
    first, second = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    with warnings.catch_warnings(action="ignore", category=stats.ConstantInputWarning):
        rho, tau = stats.spearmanr(first, second).statistic, stats.kendalltau(first, second).statistic
    assert spearman(first, second) == pytest.approx(rho, nan_ok=True)
    assert kendall(first, second) == pytest.approx(tau, nan_ok=True)


def test_a_stack_of_samples_is_a_correlation_for_each():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 5, (2, 3, 4, 9)).astype(float)
    for ours, theirs in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        each = [
            theirs(x, y).statistic for x, y in zip(first.reshape(-1, 9), second.reshape(-1, 9), strict=True)
        ]
        assert ours(first, second) == pytest.approx(np.reshape(each, (3, 4)))


@pytest.mark.parametrize("statistic", [spearman, kendall])
def test_the_interval_is_that_of_the_paired_bootstrap(statistic):
    random = np.random.default_rng(3)
    first = random.normal(size=14)
    second = first + random.normal(size=14)
    estimated = estimate(statistic, first, second)
    samples = {"paired": True, "vectorized": False, "n_resamples": 4000, "rng": 7}
    expected = stats.bootstrap((first, second), statistic, method="percentile", **samples).confidence_interval
    assert estimated.low == pytest.approx(expected.low, abs=0.06)
    assert estimated.high == pytest.approx(expected.high, abs=0.06)


def test_resamples_of_one_value_alone_do_not_count():
    """Of two distinct pairs, half of the resamples hold one of them twice and have no correlation."""
    assert estimate(spearman, np.array([1.0, 2]), np.array([3.0, 4])) == Estimate(1.0, 1.0, 1.0)


def test_constant_values_have_no_correlation():
    assert estimate(kendall, np.ones(4), np.arange(4.0)) == Estimate(None, None, None)


@pytest.mark.parametrize(
    ("estimated", "text"),
    [
        (Estimate(0.861, 0.549, 0.97), "0.86 (0.55 to 0.97)"),
        (Estimate(0.5, None, None), "0.50"),
        (Estimate(None, None, None), "undefined"),
    ],
)
def test_an_estimate_as_text(estimated, text):
    assert str(estimated) == text
