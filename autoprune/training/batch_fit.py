"""The losses of a batch that is trained in parts, whose gradients add up to those of the batch.

Sums over images are those of the whole batch. What a batch is normalized by (BatchNorm2d's statistics, the
correlations of distillation) is that of each part, as it is of each process under `torchrun`.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from autoprune.modules.batch_fit import BatchFit


def sum_losses(
    fit: BatchFit, count: int, backward: Callable[[slice], dict[str, Tensor]], reset: Callable[[], None]
) -> dict[str, Tensor]:
    """The losses of a batch, whose gradients were added up.

    Args:
        fit: how many images fit at once.
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

    def summed(parts: Sequence[slice]) -> dict[str, Tensor]:
        total = backward(parts[0])
        for part in parts[1:]:
            for name, value in backward(part).items():
                total[name] = total[name] + value if name in total else value
        return total

    return fit.run(count, summed, "is trained in parts of {}, whose gradients are added", reset)
