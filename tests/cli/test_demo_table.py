"""What the demo says in words agrees with the figures in its table."""

import numpy as np
import pytest

from autoprune.cli.demo_comparison import Compared, Comparison, Measured
from autoprune.cli.demo_table import (
    search_sentence,
    sentences,
    sibling_entry,
    sibling_sentence,
    table_entries,
)
from autoprune.data.evaluate import NUMBERS, Metrics

SPREAD = 0.002  # of the difference of two detectors from resample to resample


def measured(map: float, gflops: float = 0.3, seed: int = 0) -> Measured:
    """A detector whose mAP varies with the images as that of all others, and by `SPREAD` on its own."""
    shared = np.random.default_rng(99).normal(0, 0.05, 100)
    noise = np.random.default_rng(seed).normal(0, SPREAD / np.sqrt(2), 100)
    scores = Metrics(
        **dict.fromkeys(NUMBERS, map), per_class={}, images=6, bootstrap=tuple(map + shared + noise)
    )
    return Measured(scores, gflops, 2.0, 12.0)


def comparison(uniform: float, one_shot: float, searched: float, recovered: float = 0.74) -> Comparison:
    untrained = {
        number: measured(value, seed=number) for number, value in enumerate((uniform, one_shot, searched))
    }
    dense, sibling = measured(0.767, 0.6, 10), measured(0.74, 0.2, 11)
    return Comparison(dense, sibling, untrained, {2: measured(recovered, 0.2, 12)}, sibling_val_map=0.77)


TRIALS = [
    Compared(0, "uniform", "uniform", 0.3, is_best=False),
    Compared(1, "one-shot", "knapsack joint", 0.3, is_best=False),
    Compared(2, "searched", "searched", 0.3, is_best=True),
]


@pytest.mark.parametrize(
    ("maps", "start"),
    [
        ((0.70, 0.72, 0.75), "the search ends 3.0 mAP above the best one-shot policy (knapsack joint); "),
        ((0.73, 0.72, 0.75), "the search ends 2.0 mAP above the best one-shot policy (uniform); "),
        ((0.70, 0.72, 0.721), "the search gains nothing that can be shown: 0.1 mAP above the best one-shot"),
        ((0.70, 0.72, 0.72), "the search does not beat the best one-shot policy (knapsack joint): 0.0 mAP"),
        ((0.70, 0.72, 0.70), "the search does not beat the best one-shot policy (knapsack joint): 2.0 mAP"),
    ],
)
def test_the_search_is_compared_with_the_best_one_shot_policy(
    maps: tuple[float, float, float], start: str
) -> None:
    sentence = search_sentence(comparison(*maps), TRIALS)
    assert sentence.startswith(start)
    assert "standard error of 0.2" in sentence or "standard error 0.2" in sentence  # not 5, which both share


def test_without_a_searched_or_a_one_shot_policy_nothing_is_claimed() -> None:
    result = comparison(0.7, 0.7, 0.7)
    assert "no searched policy" in search_sentence(result, TRIALS[:2])
    assert "no one-shot policy" in search_sentence(result, TRIALS[2:])


@pytest.mark.parametrize(
    ("recovered", "words", "verdict"),
    [
        (0.76, "2.0 mAP above", None),
        (0.7405, "mAP above", "neither is shown to be better"),
        (0.7395, "mAP below", "neither is shown to be better"),
        (0.72, "2.0 mAP below", "trained for 6000 steps at its size, the pruned detector for 90 steps"),
    ],
)
def test_the_recovered_detector_is_compared_with_the_sibling(
    recovered: float, words: str, verdict: str | None
) -> None:
    sentence = sibling_sentence(measured(recovered, 0.195, 3), measured(0.74, 0.201, 4), steps=90)
    assert "at 0.195 GFLOPs ends" in sentence
    assert f"{words} the smaller sibling at 0.201 GFLOPs" in sentence
    assert sentence.endswith(f"{verdict}." if verdict else "standard error 0.2.")


def test_each_budget_has_a_sentence_and_the_sibling_the_last() -> None:
    lines = sentences(comparison(0.70, 0.72, 0.75), TRIALS, steps={2: 90})
    assert lines[0].startswith("50%: the search ends 3.0 mAP above")
    assert lines[1].startswith("The recovered detector at 0.200 GFLOPs")
    assert len(lines) == 2


def test_the_table_has_a_row_for_each_detector() -> None:
    rows = table_entries(comparison(0.70, 0.72, 0.75), TRIALS)
    assert [(row.name, row.kind, row.map, row.recovered_map) for row in rows] == [
        ("dense", "dense", 0.767, None),
        ("50% uniform", "uniform", 0.70, None),
        ("50% one-shot", "one-shot", 0.72, None),
        ("50% searched", "searched", 0.75, 0.74),
        ("smaller sibling", "sibling", 0.74, None),
    ]
    assert {row.latency_ms for row in rows} == {12.0}
    in_picture = sibling_entry(comparison(0.70, 0.72, 0.75), 0.77)
    assert (in_picture.map, in_picture.gflops, in_picture.kind) == (0.77, 0.2, "sibling")
