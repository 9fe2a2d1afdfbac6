"""A batch is computed in as few parts as memory allows; the memory is a stand-in that refuses."""

import pytest
import torch

from autoprune.modules.batch_fit import BatchFit


class Memory:
    """Holds so many images at once; refuses more as torch's allocator on CUDA does."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, list[int]()

    def indices(self, parts: list[slice]) -> list[int]:
        done: list[int] = []
        for part in parts:
            self.sizes.append(part.stop - part.start)
            if self.sizes[-1] > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            done += range(part.start, part.stop)
        return done


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
def test_each_image_is_computed_once_in_its_place(most: int) -> None:
    memory, fit = Memory(most), BatchFit()
    for count in (7, 3, 8, 1):
        assert fit.run(count, memory.indices, "goes in parts of {}") == list(range(count))
    assert fit.most is None or fit.most <= most < 2 * fit.most


def test_what_failed_is_undone_and_the_message_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("autoprune.modules.batch_fit.say", lambda line, **_: lines.append(line))
    memory, fit, left = Memory(2), BatchFit(), list[int]()

    def compute(parts: list[slice]) -> list[int]:
        left.append(len(parts))
        return memory.indices(parts)

    for _ in range(3):
        fit.run(4, compute, "goes in parts of {}", left.clear)
        assert left == [2], "nothing of an attempt that failed is left"
    assert lines == [
        "out of memory at 4 images at once: each batch of 4 goes in parts of 2; "
        "--batch-size 2 would fit whole"
    ]


def test_one_image_too_many_and_other_errors_are_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        BatchFit().run(4, Memory(0).indices, "goes in parts of {}")

    def broken(parts: list[slice]) -> None:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        BatchFit().run(4, broken, "goes in parts of {}")
