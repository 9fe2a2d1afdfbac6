"""The errors that a user can see; each message says what is wrong, where, and what to do next."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class AutopruneError(Exception):
    """Base of all errors raised on purpose. The command line prints one line for each.

    Attributes:
        exit_code: 2 if the input is at fault, 1 if the work itself failed.
    """

    exit_code = 1


class InputError(AutopruneError):
    """The user's input can't be used."""

    exit_code = 2


class ConfigError(InputError):
    """A setting, a flag or a YAML field is unknown or out of range."""


class DataError(InputError):
    """The images or annotations are missing, or in no layout that is read."""


class ModelError(InputError):
    """The detector can't be built, loaded or traced."""


class PolicyError(InputError):
    """A policy, a width or a keep set does not fit the model."""


class BudgetError(InputError):
    """No policy in the search space meets the budget."""


class RunError(InputError):
    """The run directory can't be used: another configuration, incomplete, or the disk is full."""


class ResumableError(RunError):
    """What the work needs was lost, such as a cluster or room on the disk; the same command goes on then."""


class TrainingError(AutopruneError):
    """Training failed: the loss is not finite, or memory ran out."""


class ExportError(AutopruneError):
    """An exported file does not reproduce the detector's results."""


# What a trial's own policy can cause. Any other error ends the search, and the trial is run again on resume.
TRIAL_ERRORS = (TrainingError, PolicyError, ModelError)

# Of the allocators of torch on the CPU, C++, ONNX Runtime and oneDNN, which raise no error of their own kind.
# oneDNN's "could not create a primitive descriptor", though, is of layers that it does not compute.
_TEXTS = re.compile(
    r"can't allocate memory|Cannot allocate memory|not enough memory|out of memory|std::bad_alloc|"
    r"Failed to allocate memory|Storage size calculation overflowed|CUBLAS_STATUS_ALLOC_FAILED|"
    r"could not create a primitive(?! descriptor)"
)


@contextmanager
def out_of_memory(at: str, remedy: str, error: type[AutopruneError] = TrainingError) -> Iterator[None]:
    """Turns a failed allocation, on whatever device, into one line.

    Args:
        at: what was done, such as ``at 8 images per step``.
        remedy: what to do.
        error: what to raise.

    Raises:
        AutopruneError: memory ran out.
    """
    try:
        yield
    except Exception as cause:
        says_so = isinstance(cause, AutopruneError) and str(cause).startswith("out of memory")
        if says_so or not is_out_of_memory(cause):  # the inner one says more exactly where
            raise
        raise error(f"out of memory {at}; {remedy}") from cause


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library says that memory ran out."""
    by_class = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_class or _TEXTS.search(str(error)) is not None
