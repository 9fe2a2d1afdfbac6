"""Numbers and widths that are computed from each other, and where two runs part."""

import pytest

from autoprune.graph.deviations import ChangedNumber, common_steps
from autoprune.ops.labels import Step


def test_runs_diverge_at_another_op_or_number_of_outputs():
    steps = [Step(op, (), [()] * outputs) for op, outputs in (("a", 1), ("b", 2), ("c", 1))]
    assert common_steps(steps, steps) == 3
    assert common_steps(steps, steps[:2]) == 2
    assert common_steps(steps, [steps[0], Step("b", (), [()]), steps[2]]) == 1
    assert common_steps(steps, [Step("x", (), [()]), *steps[1:]]) == 0


@pytest.mark.parametrize("of_width", [float, lambda n: n**-0.5, lambda n: 1 / n, lambda n: n**0.5])
def test_a_changed_number_points_to_both_widths(of_width):
    assert (24, 18) in ChangedNumber("mul", of_width(24), of_width(18)).widths()
    assert (24, 1) in ChangedNumber("mul", -of_width(24), -of_width(1)).widths()


@pytest.mark.parametrize(
    "numbers", [(0.3, 0.31), (8.0, 0.0), (8.0, -4.0), (8.0, float("nan")), (float("inf"), 2.0)]
)
def test_a_changed_number_that_is_of_no_widths_points_to_none(numbers):
    assert ChangedNumber("mul", *numbers).widths() == []
