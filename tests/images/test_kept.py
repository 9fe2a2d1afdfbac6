"""What is decoded once, and what again."""

import pickle
from functools import partial
from pathlib import Path

import torch

from autoprune.images.kept import KeptImages, Memory
from autoprune.images.node_images import node_images

SIZES = [(4, 6)] * 4


class Decoder:
    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, index: int) -> torch.Tensor:
        self.calls.append(index)
        return torch.full((3, 4, 6), index, dtype=torch.uint8)


def values(images: list[torch.Tensor]) -> list[int]:
    return [int(image.unique().item()) for image in images]


def test_images_are_decoded_once_while_there_is_memory_and_in_the_order_of_their_use() -> None:
    decoder, memory = Decoder(), Memory(2 * 72)
    kept = KeptImages(memory)
    assert values(kept.take([3, 1, 3], decoder)) == [3, 1, 3]
    assert sorted(decoder.calls) == [1, 3]
    assert memory.free_bytes == 0
    assert values(kept.take([0, 1, 2, 3], decoder)) == [0, 1, 2, 3]
    assert values(kept.take([0], decoder)) == [0]
    assert sorted(decoder.calls) == [0, 0, 1, 2, 3]


def test_two_sets_of_a_machine_decode_for_each_other_and_travel(tmp_path: Path) -> None:
    memory = Memory(10**6)
    first = KeptImages(memory, partial(node_images, "scope", SIZES, 10**6, tmp_path))
    second = pickle.loads(pickle.dumps(first))
    decoders = Decoder(), Decoder()
    assert values(first.take([0, 2], decoders[0])) == [0, 2]
    assert values(second.take([0, 1, 2], decoders[1])) == [0, 1, 2]
    assert values(first.take([1], decoders[0])) == [1]
    assert (sorted(decoders[0].calls), decoders[1].calls) == ([0, 2], [1])
    assert memory.free_bytes == 10**6
    traveled = pickle.loads(pickle.dumps(second))
    assert values(traveled.take([1], decoders[1])) == [1]


def test_without_a_file_of_the_machine_each_keeps_its_own(tmp_path: Path) -> None:
    kept, decoder = KeptImages(Memory(10**6), partial(node_images, "s", SIZES, 1, tmp_path)), Decoder()
    for _ in range(2):
        assert values(kept.take([0, 1], decoder)) == [0, 1]
    assert sorted(decoder.calls) == [0, 1]
    assert list(tmp_path.iterdir()) == []
