"""The contract of errors: exit codes that scripts rely on, and one base that the command line catches."""

import inspect

import pytest

from autoprune import errors

ERRORS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__
]
EXIT_CODES = {
    "AutopruneError": 1,
    "InputError": 2,
    "ConfigError": 2,
    "DataError": 2,
    "ModelError": 2,
    "PolicyError": 2,
    "BudgetError": 2,
    "RunError": 2,
    "ResumableError": 2,
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


@pytest.mark.parametrize(
    ("text", "is_memory"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("[Errno 12] Cannot allocate memory", True),
        ("could not create a primitive", True),  # oneDNN's
        ("could not create a primitive descriptor for a convolution", False),  # what it does not compute
        ("std::bad_alloc", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("x", False),
    ],
)
def test_a_failed_allocation_is_one_line_and_another_error_passes(text, is_memory):
    refused = pytest.raises(errors.TrainingError if is_memory else RuntimeError)
    with refused as raised, errors.out_of_memory("at 8 images per step", "lower batch_size"):
        raise RuntimeError(text)
    expected = "out of memory at 8 images per step; lower batch_size" if is_memory else text
    assert str(raised.value) == expected
