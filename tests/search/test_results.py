from pathlib import Path

import pytest

from autoprune.search.results import SearchResult, indistinct
from autoprune.search.trials import Record


def result(maps, error, budgets=None, state="complete"):
    budgets = budgets or [1.5] * len(maps)
    records = tuple(
        Record(n, state, "sampler", budget, {}, ({"map": value},))
        for n, (value, budget) in enumerate(zip(maps, budgets, strict=True))
    )
    dense = {"map": 0.5} if error is None else {"map": 0.5, "map_error": error}
    return SearchResult(Path("run"), (), records, dense, {})


def test_trials_that_differ_by_less_than_the_standard_error_are_said_to_be_alike():
    said = indistinct(result([0.30, 0.31, 0.305], 0.021))
    assert "complete trials at 1.50 GFLOPs differ by 1.0 mAP, less than the standard error" in said
    assert "images, 2.1: too few images to rank them" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "found",
    [
        result([0.30, 0.35, 0.305], 0.02),  # far enough apart
        result([0.30, 0.31], 0.02),  # two are not many
        result([0.30, 0.31, 0.32], None),  # an older run
        result([0.30, 0.31, 0.32], 0.05, state="stopped"),
        result([0.30, 0.31, 0.2, 0.4, 0.3], 0.05, budgets=[2, 2, 1, 1, 1]),
    ],
)
def test_otherwise_nothing_is_said(found):
    assert indistinct(found) is None
