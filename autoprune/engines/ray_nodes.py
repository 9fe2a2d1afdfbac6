"""The nodes of a Ray cluster: what fits on them, whether they can do the work, and what runs on which."""

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoprune import __version__
from autoprune.engines.cluster import Cluster, node_report, sizes, worker_slots
from autoprune.errors import ConfigError, RunError
from autoprune.progress import say

NODE_ANSWER_S = 300.0  # a node says within this what it sees; on a busy one, starting Python takes a minute


def nodes() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray describes them; the head node first."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return sorted(alive, key=lambda node: "node:__internal_head__" not in node["Resources"])


def node_options(node: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's options for an actor or a task that has to run on that node, whatever else runs there."""
    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    }


def run_on(node: Mapping[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function on one node, once; returns Ray's reference to the result."""
    return ray.remote(function).options(max_retries=0, **node_options(node)).remote(*arguments)


def available_workers(cluster: Cluster) -> int:
    """How many of the requested workers fit on the cluster as it is now; nodes that join later are used.

    Raises:
        ConfigError: not even one does.
    """
    slots = sum(worker_slots(node["Resources"], cluster) for node in nodes())
    if slots == 0:
        raise ConfigError(
            f"no Ray node has {cluster.cpus_per_trial:g} CPUs and {cluster.gpus_per_trial:g} GPUs for a "
            "worker; lower --cpus-per-trial or --gpus-per-trial"
        )
    if slots < cluster.workers:
        say(f"{cluster.workers} workers requested, the cluster has room for {slots} now")
    return min(slots, cluster.workers)


def check_nodes(cluster: Cluster) -> None:
    """Asks every node whether it has this autoprune and sees what workers will read.

    Raises:
        RunError: names the node, and what it lacks.
    """
    paths = sizes(cluster.required_paths)
    for node, answer in [(node, run_on(node, node_report, paths)) for node in nodes()]:
        place = f"node {node['NodeManagerAddress']}"
        try:
            node_version, missing = ray.get(answer, timeout=NODE_ANSWER_S)
        except ray.exceptions.GetTimeoutError as error:
            raise RunError(
                f"{place} does not answer; see `ray status`, and remove it from the cluster or fix it"
            ) from error
        except (ray.exceptions.RayError, ImportError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"{place} can't run autoprune: {reason}; install version {__version__} there too"
            ) from error
        if node_version != __version__:
            raise RunError(
                f"{place} has autoprune {node_version}, this is {__version__}; install the same there"
            )
        if missing is not None:
            raise RunError(f"{place} {missing}; put data and weights on storage that all nodes see")
