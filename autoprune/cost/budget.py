"""Budgets: upper bounds on what a pruned detector may cost, as numbers or as fractions of the dense one."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from autoprune.errors import BudgetError
from autoprune.fields import BUDGET_NUMBER

Metric = Literal["gflops", "mparams", "latency_ms"]

UNITS: dict[Metric, str] = {"gflops": "GFLOPs", "mparams": "M parameters", "latency_ms": "ms"}


@dataclass(frozen=True)
class Budget:
    """An upper bound on one cost of a detector.

    Attributes:
        metric: what is bounded.
        limit: the largest value allowed: GFLOPs (billions of multiply-adds), millions of parameters, or ms.
    """

    metric: Metric
    limit: float

    def __post_init__(self) -> None:
        """Checks the arguments.

        Raises:
            BudgetError: the metric is unknown, or the limit is not a finite number above 0.
        """
        if self.metric not in get_args(Metric):
            raise BudgetError(f"a budget bounds {', '.join(UNITS)}, not `{self.metric}`")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise BudgetError(f"budget_{self.metric} must be a number above 0, not {self.limit}")

    def __str__(self) -> str:
        """The bound with its unit: ``75.8 GFLOPs``."""
        return f"{figures(self.limit)} {UNITS[self.metric]}"


def parse_budget(text: str, metric: Metric, dense: float) -> Budget:
    """Parses a budget as the user wrote it.

    Args:
        text: ``"50"`` (in the unit of ``metric``) or ``"33%"`` (of the dense detector).
        metric: what is bounded.
        dense: the dense detector's cost in the same unit.

    Raises:
        BudgetError: the text is not a number, or the bound is not between 0 and the dense detector's cost.
    """
    field, unit = f"budget_{metric}", UNITS[metric]
    number = text.strip().removesuffix("%").strip()
    if not BUDGET_NUMBER.fullmatch(number.removeprefix("-")):
        raise BudgetError(
            f"{field}: {text!r} is not a number; "
            f"give {unit} such as {figures(dense / 2)}, or a percentage such as 50%"
        )
    value = float(number)
    limit = value * dense / 100 if text.strip().endswith("%") else value
    if not limit > 0:
        raise BudgetError(
            f"{field}: {text.strip()} is not above 0; the dense detector has {figures(dense)} {unit}"
        )
    if not limit < dense:
        raise BudgetError(
            f"{field}: {text.strip()} prunes nothing: the dense detector has {figures(dense)} {unit}; "
            "give a smaller number, or a percentage such as 50%"
        )
    return Budget(metric, limit)


def figures(value: float) -> str:
    """Four significant figures, without an exponent: ``151.5``, ``0.08012``."""
    if value == 0 or not math.isfinite(value):
        return str(value)
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
