"""Results come in order whatever the threads do; errors at their place; no thread outlives the block."""

import threading
from collections.abc import Iterator

import pytest

from autoprune.images import prefetch
from autoprune.images.prefetch import prefetched


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with four cores; and whatever a test does, its threads must have ended."""
    monkeypatch.setattr(prefetch, "threads", lambda: 4)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_results_keep_the_order_when_a_later_item_is_done_first() -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(60)
        if item == 1:
            second_done.set()
        return item * item

    with prefetched(work, range(9), ahead=4) as results:
        assert list(results) == [item * item for item in range(9)]


def test_work_goes_on_while_the_caller_does_not_take_anything() -> None:
    """The next items are done during what the caller does with one, and no more than ``ahead`` of them."""
    done = [threading.Event() for _ in range(20)]
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            drawn.append(item)
            yield item

    with prefetched(lambda item: done[item].set(), items(), ahead=3) as results:
        next(results)
        assert all(event.wait(60) for event in done[:4])
        assert drawn == [0, 1, 2, 3]
        next(results)
        assert done[4].wait(60)
        assert drawn == [0, 1, 2, 3, 4]


def test_an_error_comes_where_its_result_is_taken_and_ends_the_threads() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("image 2 is damaged")
        return item

    taken: list[int] = []

    def take_all() -> None:
        with prefetched(work, range(50), 8) as results:
            taken.extend(results)

    with pytest.raises(ValueError, match="image 2 is damaged"):
        take_all()
    assert taken == [0, 1]


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_what_ends_the_block_ends_the_work(end: type[BaseException]) -> None:
    """Of a thousand items, only those that had begun are finished."""
    begun: list[int] = []

    def take_one() -> None:
        with prefetched(begun.append, range(1000), 4) as results:
            next(results)
            raise end

    with pytest.raises(end):
        take_one()
    assert len(begun) <= 6


def test_a_block_that_takes_nothing_and_no_items_end_as_well() -> None:
    with prefetched(lambda item: item, range(1000), 4):
        pass
    with prefetched(lambda item: item, [], 4) as results:
        assert list(results) == []
