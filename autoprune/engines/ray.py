"""Trials on a Ray cluster, through Ray Tune. The ledger decides; Tune only carries work to workers.

One actor a worker loads detector, data and teacher once and is reused for all its trials. To it goes a
policy (kilobytes), back come metrics (bytes). Checkpoints and Tune's own files are not used.
"""

import gc
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoprune import __version__
from autoprune.engines.dispatch import Cluster, Dispatch, cause_of, end, look, room, sizes, version
from autoprune.engines.local import TRIAL_ERRORS
from autoprune.engines.surroundings import environment, knock, no_cluster, quiet, same_signals, scratch
from autoprune.errors import AutopruneError, ConfigError, RunError
from autoprune.progress import say
from autoprune.ranges import from_ranges, to_ranges
from autoprune.search.ledger import Ledger
from autoprune.search.trials import Evaluator

try:
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise ConfigError(
        "engine ray needs Ray: pip install 'ray[tune]>=2.40', or choose --engine local"
    ) from missing

__all__ = ["Cluster", "run"]

LOOK_S = 300.0  # a node says within this what it sees; on a busy one, starting Python takes a minute
LONGEST_FOLDER = 40  # Ray's sockets lie 66 characters below, and Linux allows 107
STORE_BYTES = 128 * 2**20  # of a Ray that is started here: policies and metrics are small

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run(
    ledger: Ledger,
    load: Callable[[], Evaluator[Any]],
    finished: Callable[[int], None],
    cluster: Cluster,
    changed: Callable[[], None] = lambda: None,
) -> None:
    """Runs trials until the ledger has no more.

    A trial whose worker or node dies, or is silent for too long (`dispatch.LIMIT_MEDIANS`), goes back into
    the queue. Nodes that join are used.

    Args:
        ledger: asks, decides and keeps; it stays in this process.
        load: makes the objective, once in each worker. It is sent there, so it must pickle.
        finished: called with a trial's number after each trial.
        cluster: where, and how many at once.
        changed: called when a worker begins a trial or ends a rung.

    Raises:
        RunError: there is no cluster at the address, it has other versions, or a node can't see the data.
        ConfigError: no node has what one worker takes, or the address is a Ray client's.
    """
    with (
        environment(_ENVIRONMENT),
        scratch() as folder,
        _connected(cluster, folder),
        quiet(),
        # Workers load side by side, not one after the other as is Tune's default.
        environment({"TUNE_MAX_PENDING_TRIALS_PG": str(_fitting(cluster))}),
    ):
        _check_nodes(cluster)
        dispatch = Dispatch(ledger, finished, changed)
        trainable = tune.with_resources(
            _trainable(load),
            tune.PlacementGroupFactory([{"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial}]),
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_LedgerSearcher(dispatch),
                scheduler=_LedgerScheduler(dispatch),
                num_samples=-1,
                max_concurrent_trials=cluster.workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:04d}",
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                callbacks=[_Watch(dispatch)],
                stop=_OnError(dispatch),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            raise dispatch.error or error from error
        if dispatch.error is not None:
            raise dispatch.error


class _LedgerSearcher(Searcher):  # type: ignore[misc, unused-ignore]
    """Hands the ledger's trials to Tune."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if (candidate := self._dispatch.ask(trial_id)) is not None:
            keep = {name: to_ranges(kept) for name, kept in candidate.keep.items()}
            return {"number": candidate.number, "keep": json.dumps(keep)}
        return str(Searcher.FINISHED) if self._dispatch.done else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._dispatch.finish(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the ledger is the state."""


class _LedgerScheduler(FIFOScheduler):  # type: ignore[misc, unused-ignore]
    """Stops a trial where the ledger says so, which it also does at the top rung."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        goes_on = self._dispatch.report(trial.trial_id, json.loads(result["answer"]))
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self._dispatch.blame(trial.trial_id, cause_of(text))


class _Watch(tune.Callback):  # type: ignore[misc, unused-ignore]
    """Kills workers that are silent for too long, and frees what Tune keeps of trials that are over."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._processes: dict[str, Any] = {}  # references to (address, pid) of the workers

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Asked for before the worker begins: a worker that hangs does not answer.
        actor = trial.temporary_state.ray_actor
        self._processes[trial.trial_id] = actor.get_current_ip_pid.remote()
        self._dispatch.begin(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for trial_id in self._dispatch.overdue():
            address, pid = ray.get(self._processes[trial_id], timeout=LOOK_S)
            # `ray.kill` asks the process itself, in vain where it is frozen.
            for node in _nodes():
                if node["NodeManagerAddress"] == address:
                    _on(node, end, pid)
                    break

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._processes.pop(trial.trial_id, None)
        trial.config = trial.evaluated_params = {"number": trial.config["number"]}

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)


class _OnError(tune.Stopper):  # type: ignore[misc, unused-ignore]
    """Ends all trials at once where the search has to end."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._dispatch.error is not None


def _trainable(load: Callable[[], Evaluator[Any]]) -> type:
    """The worker's class; made here so that it travels by value and carries ``load``."""

    class PolicyTrial(tune.Trainable):  # type: ignore[misc, unused-ignore]
        def setup(self, config: dict[str, Any]) -> None:
            self._broken: str | None = None
            try:
                self._objective = load()
            except AutopruneError as error:  # no other trial would fare better here
                self._broken = str(error)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            ranges = json.loads(new_config["keep"])
            self._keep = {name: from_ranges(text) for name, text in ranges.items()}
            self._rung, self._state = 0, None
            _free()
            return True

        def step(self) -> dict[str, Any]:
            return {"answer": json.dumps(self._answer())}

        def _answer(self) -> dict[str, Any]:
            if self._broken is not None:
                return {"broken": self._broken, "node": socket.gethostname()}
            try:
                metrics, self._state = self._objective.evaluate(self._keep, self._rung, self._state)
            except TRIAL_ERRORS as error:
                self._state = None
                return {"reason": str(error)}
            self._rung += 1
            return {"rung": self._rung - 1, "metrics": metrics}

    return PolicyTrial


def _free() -> None:
    """Gives the last trial's memory back to the GPU, which other workers may share."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def _fitting(cluster: Cluster) -> int:
    """How many of the workers fit on the cluster as it is now; nodes that join later are used.

    Raises:
        ConfigError: not even one does.
    """
    fitting = sum(room(node["Resources"], cluster) for node in _nodes())
    if fitting == 0:
        raise ConfigError(
            f"no Ray node has {cluster.cpus_per_trial:g} CPUs and {cluster.gpus_per_trial:g} GPUs for a "
            "worker; lower --cpus-per-trial or --gpus-per-trial"
        )
    if fitting < cluster.workers:
        say(f"{cluster.workers} workers asked for, the cluster has room for {fitting} now")
    return min(fitting, cluster.workers)


def _check_nodes(cluster: Cluster) -> None:
    """Asks every node whether it has this autoprune and sees what workers will read.

    Raises:
        RunError: names the node, and what it lacks.
    """
    asked = [(node, [_on(node, version), _on(node, look, sizes(cluster.must_see))]) for node in _nodes()]
    for node, answers in asked:
        where = f"node {node['NodeManagerAddress']}"
        try:
            found, lacks = ray.get(answers, timeout=LOOK_S)
        except ray.exceptions.GetTimeoutError as error:
            raise RunError(
                f"{where} does not answer; see `ray status`, and take it out or mend it"
            ) from error
        except (ray.exceptions.RayError, ImportError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(f"{where} can't run autoprune: {reason}; install it there too") from error
        if found != __version__:
            raise RunError(f"{where} has autoprune {found}, this is {__version__}; install the same there")
        if lacks is not None:
            raise RunError(f"{where} {lacks}; put data and weights on storage that all nodes see")


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _on(node: Mapping[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function on one node, whatever else runs there; returns Ray's reference to the result."""
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    return task.remote(*arguments)


@contextmanager
def _connected(cluster: Cluster, folder: str) -> Iterator[None]:
    """Connects to the cluster, or starts Ray here; leaves a connection alone that was there before."""
    if ray.is_initialized():
        yield
        return
    if (cluster.address or "").startswith("ray://"):  # Tune would take the ledger to the cluster with it
        raise ConfigError(
            f"the search can't be driven through {cluster.address}: run it on a machine of the cluster "
            "(`ray exec`, `ray job submit`), with --address auto"
        )
    here: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    if len(folder) <= LONGEST_FOLDER:  # so that its files go with the rest
        here["_temp_dir"] = folder
    try:
        knock(cluster.address)
        there = here if cluster.address in (None, "local") else {"address": cluster.address}
        with same_signals():
            ray.init(**there, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises plain ones where a process of its own is late
        raise no_cluster(cluster.address, error) from error
    try:
        yield
    finally:
        ray.shutdown()
