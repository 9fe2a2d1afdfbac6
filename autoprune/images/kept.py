"""Decoded images that are kept: in this process while there is memory, or for all of the machine."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from torch import Tensor

from autoprune.images.decode import threads
from autoprune.images.node_images import NodeImages

_KEEPING = Lock()  # images are loaded in several threads; of the module, so that what is kept can be pickled


@dataclass
class Memory:
    """What remains for decoded images; sets at several sizes share it."""

    free_bytes: int


class KeptImages:
    """The decoded images of one set and size, by index.

    Args:
        memory: for those of this process.
        open_node: gives what all processes of the machine keep, instead; called at the first use, as what it
            opens belongs to a process. ``None``, or what returns it, keeps images in this process.
    """

    def __init__(self, memory: Memory, open_node: Callable[[], NodeImages | None] | None = None) -> None:
        self._memory, self._open_node = memory, open_node
        self._cache: dict[int, Tensor] = {}
        self._node: NodeImages | None = None
        self._opened = open_node is None

    def take(self, indices: Sequence[int], decode: Callable[[int], Tensor]) -> list[Tensor]:
        """Images, uint8 [3, height, width]; those that are not kept are decoded, several at once.

        Args:
            indices: of the images.
            decode: gives one; its errors are raised.
        """
        node = self._of_node()
        kept = {index: self._cache.get(index) if node is None else node.get(index) for index in indices}
        absent = [index for index, image in kept.items() if image is None]
        if len(absent) > 1 and threads() > 1:
            with ThreadPoolExecutor(min(threads(), len(absent))) as pool:
                decoded = dict(zip(absent, pool.map(decode, absent), strict=True))
        else:
            decoded = {index: decode(index) for index in absent}
        for index, image in decoded.items():
            if node is None:
                self._keep(index, image)
            else:
                node.put(index, image)
        images = [(index, kept[index]) for index in indices]
        return [decoded[index] if image is None else image for index, image in images]

    def _of_node(self) -> NodeImages | None:
        if not self._opened:
            with _KEEPING:
                if not self._opened and self._open_node is not None:
                    self._node = self._open_node()
                    self._opened = True
        return self._node

    def _keep(self, index: int, image: Tensor) -> None:
        with _KEEPING:
            if index not in self._cache and image.numel() <= self._memory.free_bytes:
                self._memory.free_bytes -= image.numel()
                self._cache[index] = image

    def __getstate__(self) -> dict[str, Any]:
        """What another process takes: it opens the machine's images by itself."""
        return {**self.__dict__, "_node": None, "_opened": self._open_node is None}
