from pathlib import Path

import pytest

from autoprune.run.results import SearchResult, indistinct
from autoprune.study.records import Record


def result(maps, error, budgets=None, state="complete"):
    budgets = budgets or [1.5] * len(maps)
    records = tuple(
        Record(n, state, "sampler", budget, {}, ({"map": value},))
        for n, (value, budget) in enumerate(zip(maps, budgets, strict=True))
    )
    dense = {"map": 0.5} if error is None else {"map": 0.5, "map_error": error}
    return SearchResult(Path("run"), (), records, dense, {})


@pytest.mark.parametrize(
    ("maps", "counts"), [([0.30, 0.31, 0.305], "3 of 3"), ([0.30, 0.1, 0.31, 0.2, 0.305], "3 of 5")]
)
def test_trials_within_the_standard_error_of_the_best_are_said_to_be_alike(maps, counts):
    said = indistinct(result(maps, 0.021))
    assert f"at 1.50 GFLOPs {counts} complete trials lie within the standard error" in said
    assert "images, 2.1, of the best: too few images to say which is best" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "found",
    [
        result([0.30, 0.35, 0.305], 0.02),  # far enough apart
        result([0.30, 0.31], 0.02),  # two are not many
        result([0.30, 0.31, 0.32], None),  # an older run
        result([0.30, 0.31, 0.32], 0.05, state="stopped"),
        result([0.30, 0.31, 0.2, 0.4, 0.3], 0.05, budgets=[2, 2, 1, 1, 1]),
        result([0.30, 0.31, 0.32], 0.05, budgets=[None] * 3),  # GFLOPs are free
    ],
)
def test_otherwise_nothing_is_said(found):
    assert indistinct(found) is None
