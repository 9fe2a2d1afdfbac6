"""A batch that does not fit into memory goes through a detector in parts: halves, quarters and so on."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from autoprune.errors import is_out_of_memory
from autoprune.progress import say

T = TypeVar("T")


class BatchFit:
    """How many images go through a detector at once: the whole batch, until memory runs out.

    Attributes:
        most: images at once; ``None`` while nothing says that a batch does not fit.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def run(
        self,
        count: int,
        compute: Callable[[Sequence[slice]], T],
        how: str,
        reset: Callable[[], None] = lambda: None,
    ) -> T:
        """What is computed of a batch, in as few parts of it as memory allows.

        Args:
            count: images of the batch.
            compute: computes it from these parts of the batch, one after the other.
            how: completes the message "out of memory at 8 images at once: each batch of 8 …".
            reset: undoes what `compute` did; called before it, each time, and after it failed.

        Raises:
            Exception: that of `compute`; one that says that memory ran out only where one image is too many.
        """
        while True:
            size = min(self.most or count, count)
            reset()
            try:
                return compute([slice(at, min(at + size, count)) for at in range(0, count, size)])
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # outside of `except`, as the error holds what the failed attempt computed
            reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.most = -(-size // 2)
            say(
                f"out of memory at {size} images at once: each batch of {count} {how.format(self.most)}; "
                f"--batch-size {self.most} would fit whole",
                above_bar=True,
            )
