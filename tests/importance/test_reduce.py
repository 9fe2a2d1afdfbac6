from types import SimpleNamespace

import numpy as np

from autoprune.importance.reduce import per_unit, removed_fraction


def test_units_add_up_their_channels() -> None:
    group = SimpleNamespace(units=np.array([[0, 3], [1, 4], [2, 5]]))
    assert per_unit(np.array([1.0, 2, 3, 10, 20, 30]), group).tolist() == [11, 22, 33]


def test_the_cumulative_curve_by_hand() -> None:
    assert removed_fraction(np.array([5.0, 1, 2, 2])).tolist() == [0, 0.1, 0.3, 0.5, 1]
    assert removed_fraction(np.zeros(4)).tolist() == [0, 0.25, 0.5, 0.75, 1]
