"""Failed allocations, in one line that says what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from autoprune.errors import AutopruneError, TrainingError

# Of the allocators of torch on the CPU and of ONNX Runtime, which raise no error of their own kind.
_TEXTS = ("can't allocate memory", "Failed to allocate memory", "Storage size calculation overflowed")


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
        if not is_out_of_memory(cause):
            raise
        raise error(f"out of memory {at}; {remedy}") from cause


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of any library says that memory ran out."""
    by_class = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_class or any(text in str(error) for text in _TEXTS)
