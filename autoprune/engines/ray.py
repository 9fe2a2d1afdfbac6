"""Trials on a Ray cluster, through Ray Tune. The ledger decides; Tune only carries work to workers.

One actor a worker loads detector, data and teacher once and is reused for all its trials. To it goes a
policy (kilobytes), back come metrics (bytes). Checkpoints and Tune's own files are not used.
"""

import gc
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from autoprune.engines.dispatch import Cluster, Dispatch, cause_of, kill
from autoprune.engines.local import TRIAL_ERRORS
from autoprune.engines.ray_setup import check_reachable, environment, no_cluster, quiet, same_signals, scratch
from autoprune.errors import AutopruneError, ConfigError
from autoprune.ranges import from_ranges, to_ranges
from autoprune.study.ledger import Ledger
from autoprune.study.trials import Evaluator

try:
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    from autoprune.engines.ray_client import RemoteDispatch, check_client, leave, lost, serve, through_client
    from autoprune.engines.ray_nodes import NODE_ANSWER_S, check_nodes, fitting, nodes, run_on
except ImportError as missing:
    raise ConfigError(
        "engine ray needs Ray: pip install 'ray[tune]>=2.40', or choose --engine local"
    ) from missing

__all__ = ["Cluster", "run"]

LONGEST_FOLDER = 40  # Ray's sockets lie 66 characters below, and Linux allows 107
STORE_BYTES = 128 * 2**20  # of a Ray that is started here: policies and metrics are small
CONNECT_PAUSES_S = (1.0, 5.0)  # between tries to be served as a client

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
        RunError: there is no cluster at the address, it has other versions, it is lost while the search
            runs, or a node can't see the data.
        ConfigError: no node has what one worker takes, or what the address needs is not installed.
    """
    with environment(_ENVIRONMENT), scratch() as folder, _connected(cluster, folder), quiet():
        work = partial(_tune, load, cluster, fitting(cluster))
        check_nodes(cluster)
        dispatch = Dispatch(ledger, finished, changed)
        try:
            if through_client():
                serve(dispatch, work)
            else:
                work(dispatch)
        except Exception as error:
            raise dispatch.error or error from error
        if dispatch.error is not None:
            raise dispatch.error


def _tune(
    load: Callable[[], Evaluator[Any]], cluster: Cluster, pending: int, dispatch: Dispatch | RemoteDispatch
) -> None:
    """Has Tune carry trials to workers until there are no more; on the cluster itself.

    Args:
        load: makes the objective, once in each worker.
        cluster: how many workers at once, and what each takes.
        pending: workers that load side by side, not one after the other as is Tune's default.
        dispatch: asks, decides and keeps.
    """
    wanted = _ENVIRONMENT | {"TUNE_MAX_PENDING_TRIALS_PG": str(pending)}
    with environment(wanted), scratch() as folder, quiet():
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
        tuner.fit()


class _LedgerSearcher(Searcher):  # type: ignore[misc, unused-ignore]
    """Hands the ledger's trials to Tune."""

    def __init__(self, dispatch: Dispatch | RemoteDispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if (candidate := self._dispatch.ask(trial_id)) is not None:
            keep = {name: to_ranges(kept) for name, kept in candidate.keep.items()}
            return {"number": candidate.number, "keep": json.dumps(keep), "repeat": candidate.repeat}
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

    def __init__(self, dispatch: Dispatch | RemoteDispatch) -> None:
        super().__init__()
        self._dispatch = dispatch

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        is_promoted = self._dispatch.report(trial.trial_id, json.loads(result["answer"]))
        return str(TrialScheduler.CONTINUE if is_promoted else TrialScheduler.STOP)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        text = Path(trial.error_file).read_text() if trial.error_file else ""
        self._dispatch.record_cause(trial.trial_id, cause_of(text))


class _Watch(tune.Callback):  # type: ignore[misc, unused-ignore]
    """Kills workers that are silent for too long, and frees what Tune keeps of trials that are over."""

    def __init__(self, dispatch: Dispatch | RemoteDispatch) -> None:
        self._dispatch = dispatch
        self._processes: dict[str, Any] = {}  # references to (address, pid) of the workers

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Asked for before the worker begins: a worker that hangs does not answer.
        actor = trial.temporary_state.ray_actor
        self._processes[trial.trial_id] = actor.get_current_ip_pid.remote()
        self._dispatch.begin(trial.trial_id)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        for trial_id in self._dispatch.overdue():
            address, pid = ray.get(self._processes[trial_id], timeout=NODE_ANSWER_S)
            # `ray.kill` asks the process itself, in vain where it is frozen.
            for node in nodes():
                if node["NodeManagerAddress"] == address:
                    run_on(node, kill, pid)
                    break

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._processes.pop(trial.trial_id, None)
        trial.config = trial.evaluated_params = {"number": trial.config["number"]}

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_trial_complete(iteration, trials, trial)


class _OnError(tune.Stopper):  # type: ignore[misc, unused-ignore]
    """Ends all trials at once where the search has to end."""

    def __init__(self, dispatch: Dispatch | RemoteDispatch) -> None:
        self._dispatch = dispatch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._dispatch.failed


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
            self._repeat = int(new_config["repeat"])
            self._rung, self._state = 0, None
            _free()
            return True

        def step(self) -> dict[str, Any]:
            return {"answer": json.dumps(self._answer())}

        def _answer(self) -> dict[str, Any]:
            if self._broken is not None:
                return {"broken": self._broken, "node": socket.gethostname()}
            try:
                metrics, self._state = self._objective.evaluate(
                    self._keep, self._rung, self._state, self._repeat
                )
            except TRIAL_ERRORS as error:
                self._state = None
                return {"reason": str(error)}
            self._rung += 1
            return {"rung": self._rung - 1, "metrics": metrics}

    return PolicyTrial


def _free() -> None:
    """Gives the last trial's memory back to the GPU, which other workers may share."""
    torch = sys.modules.get("torch")  # where nothing has loaded it, there is nothing to give back
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def _connected(cluster: Cluster, folder: str) -> Iterator[None]:
    """Connects to the cluster, or starts Ray here; leaves a connection alone that was there before."""
    if ray.is_initialized():
        yield
        return
    here: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    if len(folder) <= LONGEST_FOLDER:  # so that its files go with the rest
        here["_temp_dir"] = folder
    check_client(cluster.address)
    try:
        check_reachable(cluster.address)
        with same_signals():
            _init(**here if cluster.address in (None, "local") else {"address": cluster.address})
    except Exception as error:  # Ray raises plain ones where a process of its own is late
        ray.shutdown()  # half a connection of a client would stand in the way of the next
        raise no_cluster(cluster.address, error) from error
    try:
        yield
    except ConnectionError as error:  # not to be taken for an error of the disk
        raise lost(error) from error
    finally:
        if through_client():
            leave()
        else:
            ray.shutdown()


def _init(**where: Any) -> None:
    for pause in CONNECT_PAUSES_S:
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
            return
        except ConnectionAbortedError:  # now and then a head node's process for a client dies as it is forked
            time.sleep(pause)
    ray.init(**where, log_to_driver=False, logging_level="ERROR")
