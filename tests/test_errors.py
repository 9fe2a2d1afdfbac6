"""The contract of errors: exit codes that scripts rely on, and one base that the command line catches."""

import inspect

import pytest

from autoprune import errors

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
EXIT_CODES = {
    "AutopruneError": 1,
    "InputError": 2,
    "ConfigError": 2,
    "DataError": 2,
    "ModelError": 2,
    "PolicyError": 2,
    "BudgetError": 2,
    "RunError": 2,
    "TrainingError": 1,
    "ExportError": 1,
}


def test_exit_codes_tell_the_users_mistakes_from_failures():
    assert {kind.__name__: kind.exit_code for kind in ERRORS} == EXIT_CODES


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_caught_by_its_base_and_says_its_message(kind):
    with pytest.raises(errors.AutopruneError, match=r"^x is wrong; give y$"):
        raise kind("x is wrong; give y")
    assert issubclass(kind, errors.InputError) == (kind.exit_code == 2)
