"""The table of criteria; what each of them computes is in contracts/test_criteria.py and test_weights.py."""

from typing import get_args

import numpy as np
import pytest

from autoprune import config
from autoprune.importance import CRITERIA, comparable


def test_the_criteria_that_a_config_can_name_are_those_of_the_table() -> None:
    assert set(get_args(config.Criterion)) == set(CRITERIA)


def test_only_what_reads_gradients_needs_data_and_is_in_units_of_the_loss() -> None:
    for criterion in CRITERIA.values():
        assert criterion.needs_data or criterion.from_gates is None
        assert criterion.needs_data or not criterion.loss_units
    assert {name for name, criterion in CRITERIA.items() if criterion.loss_units} == {
        "taylor",
        "fisher",
        "joint",
        "obs",
    }


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_that_are_no_losses_are_compared_within_their_group(criterion: str) -> None:
    importance = {"a": np.array([1.0, 3]), "b": np.array([10.0, 30]), "zero": np.zeros(2)}
    expected = {"a": [0.5, 1.5], "b": [0.5, 1.5], "zero": [0, 0]}
    if CRITERIA[criterion].loss_units:
        expected = {"a": [1, 3], "b": [10, 30], "zero": [0, 0]}
    assert {name: scores.tolist() for name, scores in comparable(importance, criterion).items()} == expected
