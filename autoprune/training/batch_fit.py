"""A batch that does not fit into memory is trained in parts, whose gradients add up to those of the batch.

Sums over images are those of the whole batch. What a batch is normalized by (BatchNorm2d's statistics, the
correlations of distillation) is that of each part, as it is of each process under `torchrun`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from autoprune.errors import is_out_of_memory
from autoprune.progress import say


class BatchFit:
    """How many images go through a detector at once: the whole batch, until memory runs out.

    Attributes:
        most: images at once; ``None`` while nothing says that a batch does not fit.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def sum(
        self, count: int, backward: Callable[[slice], dict[str, Tensor]], reset: Callable[[], None]
    ) -> dict[str, Tensor]:
        """The losses of a batch, whose gradients were added up; in halves, quarters, … where memory runs out.

        Args:
            count: images of the batch.
            backward: computes the losses of some of them, by their places, and adds their gradients to those
                of the weights; both times the fraction of the batch that these images are.
            reset: undoes what `backward` added, and seeds what it draws; called before the first part, each
                time.

        Returns:
            The sum of what `backward` returned, by name.

        Raises:
            Exception: that of `backward`; one that says that memory ran out only where one image is too many.
        """
        while True:
            size = min(self.most or count, count)
            try:
                return _summed(count, size, backward, reset)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # outside of `except`, as the error holds what the failed step computed
            reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.most = -(-size // 2)
            say(
                f"out of memory at {size} images at once: each batch of {count} is trained in parts of "
                f"{self.most}, whose gradients are added; --batch-size {self.most} would fit whole",
                above_bar=True,
            )


def _summed(
    count: int, size: int, backward: Callable[[slice], dict[str, Tensor]], reset: Callable[[], None]
) -> dict[str, Tensor]:
    reset()
    total = backward(slice(0, size))
    for start in range(size, count, size):
        for name, value in backward(slice(start, min(start + size, count))).items():
            total[name] = total[name] + value if name in total else value
    return total
