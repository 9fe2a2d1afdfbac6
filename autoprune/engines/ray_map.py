"""Pieces of work that are no trials, side by side on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from autoprune.engines.cluster import Cluster
from autoprune.errors import AutopruneError, ResumableError, TrainingError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 5  # of one item whose worker or node dies


def map_on_workers(
    load: Callable[[], Callable[[Item], Result]], items: Sequence[Item], cluster: Cluster, workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with its result, in the order in which they are done.

    Args:
        load: makes the function, once in each worker. It is sent there, so it must pickle.
        items: what it is called with.
        cluster: what a worker takes.
        workers: how many at once.

    Raises:
        TrainingError: the function refuses an item, or can't be made there.
        ResumableError: a worker was lost again and again.
    """
    worker = ray.remote(_worker(load)).options(
        num_cpus=cluster.cpus_per_trial,
        num_gpus=cluster.gpus_per_trial,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    actors = [worker.remote() for _ in range(min(workers, len(items)))]
    try:
        queue = list(items)
        running: dict[Any, tuple[Any, Item]] = {}
        idle = list(actors)
        while queue or running:
            while queue and idle:
                actor, item = idle.pop(), queue.pop(0)
                running[actor.work.remote(item)] = (actor, item)
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, item = running.pop(done)
            try:
                result, problem = ray.get(done)
            except RayActorError as error:
                raise ResumableError(
                    f"the worker that had {item} was lost {RETRIES + 1} times; see its node's memory and "
                    "Ray's logs, then run the same command"
                ) from error
            if problem is not None:
                raise TrainingError(problem)
            idle.append(actor)
            yield item, result
    finally:
        for actor in actors:
            ray.kill(actor)


def _worker(load: Callable[[], Callable[[Item], Result]]) -> type:
    """The worker's class; made here so that it travels by value and carries ``load``."""

    class Worker:
        def __init__(self) -> None:
            self._function: Callable[[Item], Result] | None = None

        def work(self, item: Item) -> tuple[Result | None, str | None]:
            try:
                self._function = self._function or load()
                return self._function(item), None
            except AutopruneError as error:  # the driver would see a traceback of Ray's
                return None, str(error)

    return Worker
