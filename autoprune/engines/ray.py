"""Trials on a Ray cluster: connects to it, or starts Ray here, and runs Tune where the workers are."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from autoprune.engines.cluster import Cluster
from autoprune.engines.dispatch import Dispatch
from autoprune.engines.ray_setup import (
    check_reachable,
    environment,
    keep_sigterm,
    no_cluster,
    quiet,
    scratch_folder,
)
from autoprune.errors import ConfigError
from autoprune.study.ledger import Ledger
from autoprune.study.trials import Evaluator

try:
    import ray

    from autoprune.engines.ray_client import (
        check_client,
        connection_lost,
        disconnect,
        serve,
        through_client,
    )
    from autoprune.engines.ray_map import map_on_workers
    from autoprune.engines.ray_nodes import available_workers, check_nodes
    from autoprune.engines.ray_token import check_token
    from autoprune.engines.ray_tune import ENVIRONMENT, run_tune
except ImportError as missing:
    raise ConfigError(
        "engine ray needs Ray: pip install 'ray[tune]>=2.40', or choose --engine local"
    ) from missing

__all__ = ["Cluster", "check", "each", "run"]

Item = TypeVar("Item")
Result = TypeVar("Result")

LONGEST_FOLDER = 40  # Ray's sockets lie 66 characters below, and Linux allows 107
STORE_BYTES = 128 * 2**20  # of a Ray that is started here: policies and metrics are small
CONNECT_PAUSES_S = (1.0, 5.0)  # between attempts to connect as a client


def check(cluster: Cluster) -> None:
    """Connects to the cluster and asks its nodes whether they can do the work, then disconnects.

    A Ray that is started here is not: that takes seconds, and depends on nobody else.

    Raises:
        RunError, ConfigError: as `run` would.
    """
    if cluster.address not in (None, "local"):
        with _ready(replace(cluster, workers=1)):  # how many fit is said when they begin
            pass


def run(
    ledger: Ledger,
    load: Callable[[], Evaluator[Any]],
    finished: Callable[[int], None],
    cluster: Cluster,
    changed: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Runs trials until the ledger has no more.

    A trial whose worker or node dies, or does not answer for too long (`watchdog`), goes back into the queue.
    Nodes that join are used.

    Args:
        ledger: proposes trials, decides, and keeps the results; it stays in this process.
        load: makes the evaluator, once in each worker. It is sent there, so it must pickle.
        finished: called with a trial's number after each trial.
        cluster: where, and how many at once.
        changed: called when a worker begins a trial or ends a rung.
        clock: what workers are timed by, in seconds.

    Raises:
        RunError: there is no cluster at the address, it does not take this process's token, it has other
            versions, it is lost while the search runs, or a node can't see the data.
        ConfigError: no node has what one worker takes, or what the address needs is not installed.
    """
    with _ready(cluster) as workers:
        work = partial(run_tune, load, cluster, workers)
        dispatch = Dispatch(ledger, finished, changed, clock)
        try:
            if through_client():
                serve(dispatch, work)
            else:
                work(dispatch)
        except Exception as error:
            raise dispatch.error or error from error
        if dispatch.error is not None:
            raise dispatch.error


def each(
    load: Callable[[], Callable[[Item], Result]], items: Sequence[Item], cluster: Cluster
) -> Iterator[tuple[Item, Result]]:
    """Yields items with their results as `map_on_workers` does, with its errors and those of `run`."""
    with _ready(cluster) as workers:
        yield from map_on_workers(load, items, cluster, workers)


@contextmanager
def _ready(cluster: Cluster) -> Iterator[int]:
    """Connected to a cluster whose nodes can do the work; yields how many workers fit now."""
    with environment(ENVIRONMENT), scratch_folder() as folder, _connected(cluster, folder), quiet():
        workers = available_workers(cluster)
        check_nodes(cluster)
        yield workers


@contextmanager
def _connected(cluster: Cluster, folder: str) -> Iterator[None]:
    """Connects to the cluster, or starts Ray here; an existing connection is used, and left open."""
    if ray.is_initialized():
        yield
        return
    local: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    if len(folder) <= LONGEST_FOLDER:  # so that its files go with the rest
        local["_temp_dir"] = folder
    check_client(cluster.address)
    try:
        check_reachable(cluster.address)
        check_token(cluster.address)
        with keep_sigterm():
            _init(**local if cluster.address in (None, "local") else {"address": cluster.address})
    except Exception as error:  # Ray raises a plain one where a process of its own is late
        ray.shutdown()  # half a client connection would be in the way of the next
        raise no_cluster(cluster.address, error) from error
    try:
        yield
    except ConnectionError as error:  # not to be taken for an error of the disk
        raise connection_lost(error) from error
    finally:
        if through_client():
            disconnect()
        else:
            ray.shutdown()


def _init(**options: Any) -> None:
    """Calls `ray.init`, and again where the head node loses the process that it forks for a client."""
    for pause in CONNECT_PAUSES_S:
        try:
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
            return
        except ConnectionAbortedError:
            time.sleep(pause)
    ray.init(**options, log_to_driver=False, logging_level="ERROR")
