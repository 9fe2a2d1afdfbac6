"""Work of the next items done in the background, while the caller uses those before them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from autoprune.images.decode import threads

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def prefetched(work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[Iterator[R]]:
    """Calls ``work`` of the items in threads, ``ahead`` of the one that is taken.

    Threads and not processes: Pillow decodes and resizes without Python's lock, and what is decoded is then
    in the caller's memory (docs/benchmarks.md, "Training"). No thread outlives the block.

    Args:
        work: called in any thread, of several items at once and not in their order; what it gives must depend
            on the item alone.
        items: drawn in the caller's thread, one whenever a result is taken.
        ahead: results, at most, that are worked on or wait.

    Yields:
        The results in the order of the items. What ``work`` raises is raised where its result is taken, so
        what comes before a damaged image is as without threads.
    """
    with ThreadPoolExecutor(min(threads(), max(ahead, 1)), thread_name_prefix="prefetch") as pool:
        waiting: deque[Future[R]] = deque()

        def results() -> Iterator[R]:
            source = iter(items)
            waiting.extend(pool.submit(work, item) for item in islice(source, max(ahead, 1)))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                yield result

        try:
            yield results()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # leaving the pool waits for what has begun
