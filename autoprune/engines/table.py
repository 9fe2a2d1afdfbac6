"""The engines that can carry a search's trials: one record each, in one table."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autoprune.config import Config
from autoprune.engines import local
from autoprune.engines.cluster import Cluster
from autoprune.study.ledger import Ledger
from autoprune.study.trials import Evaluator

Load = Callable[[], Evaluator[Any]]
Finished = Callable[[int], None]
Changed = Callable[[], None]


@dataclass(frozen=True)
class Engine:
    """One engine; a new one is a row in `ENGINES` and passes `tests/contracts/test_engines.py`.

    Attributes:
        run: runs trials until the ledger has no more. Its arguments: the ledger; what makes the evaluator;
            what to call with a trial's number after each trial; the cluster; what to call when a worker
            begins a trial or ends a rung, for engines with several.
        check: fails where `run` could not begin on the cluster: nothing is there, it refuses this process, or
            its nodes can't do the work. Changes nothing; called before all that takes long.
        each: calls a function with some items and yields each with its result, in any order. Its arguments:
            what makes the function, once in each worker; the items; the cluster.
        in_driver: trials run in the driver's process, one at a time, and can use its evaluator.
    """

    run: Callable[[Ledger, Load, Finished, Cluster, Changed], None]
    check: Callable[[Cluster], None]
    each: Callable[[Callable[[], Callable[[Any], Any]], Sequence[Any], Cluster], Iterable[tuple[Any, Any]]]
    in_driver: bool

    def workers(self, config: Config) -> int:
        """How many trials a run has in flight at once, at most."""
        return 1 if self.in_driver else config.workers


def _local(ledger: Ledger, load: Load, finished: Finished, cluster: Cluster, changed: Changed) -> None:
    local.run(ledger, load(), finished)


def _ray(ledger: Ledger, load: Load, finished: Finished, cluster: Cluster, changed: Changed) -> None:
    from autoprune.engines import ray  # seconds, and not everybody has it

    ray.run(ledger, load, finished, cluster, changed)


def _check_ray(cluster: Cluster) -> None:
    from autoprune.engines import ray

    ray.check(cluster)


def _each_here(
    load: Callable[[], Callable[[Any], Any]], items: Sequence[Any], cluster: Cluster
) -> Iterable[tuple[Any, Any]]:
    function = load()
    return ((item, function(item)) for item in items)


def _each_on_ray(
    load: Callable[[], Callable[[Any], Any]], items: Sequence[Any], cluster: Cluster
) -> Iterable[tuple[Any, Any]]:
    from autoprune.engines import ray

    return ray.each(load, items, cluster)


ENGINES = {
    "local": Engine(_local, check=lambda cluster: None, each=_each_here, in_driver=True),
    "ray": Engine(_ray, check=_check_ray, each=_each_on_ray, in_driver=False),
}
