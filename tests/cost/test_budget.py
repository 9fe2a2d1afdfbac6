import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.cost.budget import Budget, figures, parse_budget
from autoprune.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "limit"),
    [("50", 50.0), (" 33% ", 49.5), ("12.5", 12.5), ("1e1", 10.0), ("0.5 %", 0.75), (".5", 0.5)],
)
def test_a_budget_is_a_number_or_a_percentage_of_the_dense_detector(text: str, limit: float) -> None:
    budget = parse_budget(text, "gflops", 150.0)
    assert budget.metric == "gflops"
    assert budget.limit == pytest.approx(limit)


@pytest.mark.parametrize("text", ["", "%", "half", "50 GFLOPs", "nan", "inf", "1_0", "5,0", "33%%", "--3"])
def test_nonsense_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(BudgetError, match=r"budget_mparams.*not a number.*M parameters such as 17.*50%"):
        parse_budget(text, "mparams", 34.0)


@pytest.mark.parametrize("text", ["0", "-1", "0%", "-20%"])
def test_a_budget_must_be_above_zero(text: str) -> None:
    with pytest.raises(BudgetError, match=r"not above 0.*7\.426 GFLOPs"):
        parse_budget(text, "gflops", 7.426)


@pytest.mark.parametrize("text", ["152", "151.54", "100%", "250%"])
def test_a_budget_must_lie_below_the_dense_detector(text: str) -> None:
    with pytest.raises(BudgetError, match=r"budget_gflops.*dense detector has 151\.5 GFLOPs"):
        parse_budget(text, "gflops", 151.54)


def test_a_budget_can_not_be_made_without_a_sensible_limit() -> None:
    with pytest.raises(BudgetError, match="above 0"):
        Budget("gflops", float("nan"))
    with pytest.raises(BudgetError, match="bounds gflops"):
        Budget("joules", 1.0)  # type: ignore[arg-type]


def test_a_budget_reads_as_a_number_with_its_unit() -> None:
    assert str(Budget("gflops", 75.77)) == "75.77 GFLOPs"
    assert str(Budget("latency_ms", 8)) == "8 ms"


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_figures_keep_four_significant_ones(value: float) -> None:
    assert float(figures(value)) == pytest.approx(value, rel=5.01e-4)
