"""Ray Tune carries the ledger's trials to workers; it decides nothing.

Each worker is one actor, which loads detector, data and teacher once and is reused for all its trials. It
receives the widths of a policy (kilobytes) and returns metrics (bytes). Checkpoints and Tune's own files are
not used.
"""

import gc
import json
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from autoprune.data.rivals import Rival
from autoprune.engines.cluster import Cluster, kill
from autoprune.engines.dispatch import Dispatch, cause_of
from autoprune.engines.ray_client import RemoteDispatch
from autoprune.engines.ray_nodes import NODE_ANSWER_S, nodes, run_on
from autoprune.engines.ray_setup import environment, quiet, scratch_folder
from autoprune.errors import TRIAL_ERRORS, AutopruneError
from autoprune.study.trials import Evaluator

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_tune(
    load: Callable[[], Evaluator[Any]], cluster: Cluster, pending: int, dispatch: Dispatch | RemoteDispatch
) -> None:
    """Has Tune carry trials to workers until there are no more; on the cluster itself.

    Args:
        load: makes the evaluator, once in each worker.
        cluster: how many workers at once, and what each takes.
        pending: workers that load at the same time; Tune's default is one after the other.
        dispatch: the ledger, or what stands for it on the cluster.
    """
    variables = ENVIRONMENT | {"TUNE_MAX_PENDING_TRIALS_PG": str(pending)}
    with environment(variables), scratch_folder() as folder, quiet():
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
                callbacks=[_WorkerCallback(dispatch)],
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
            # As text: Tune would read a mapping as a space to search.
            widths = json.dumps(dict(candidate.widths))
            rivals = json.dumps([[asdict(rival) for rival in rung] for rung in candidate.rivals])
            return {
                "number": candidate.number,
                "widths": widths,
                "repeat": candidate.repeat,
                "rivals": rivals,
            }
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


class _WorkerCallback(tune.Callback):  # type: ignore[misc, unused-ignore]
    """Kills workers that are overdue, and frees what Tune keeps of finished trials."""

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
    """The worker's class; made here so that it travels by value and carries ``load``.

    Of autoprune it names nothing but errors: what a worker imports beside Ray is what its evaluator needs.
    """

    class PolicyTrial(tune.Trainable):  # type: ignore[misc, unused-ignore]
        def setup(self, config: dict[str, Any]) -> None:
            self._broken: str | None = None
            try:
                self._evaluator = load()
            except AutopruneError as error:  # any other trial would fail here as well
                self._broken = str(error)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._widths = json.loads(new_config["widths"])
            self._repeat = int(new_config["repeat"])
            self._rivals = [[Rival(**rival) for rival in rung] for rung in json.loads(new_config["rivals"])]
            self._rung, self._state = 0, None
            torch = sys.modules.get("torch")  # if nothing has loaded it, there is nothing to free
            if torch is not None and torch.cuda.is_initialized():
                gc.collect()  # the last trial's memory on the GPU, which other workers may share
                torch.cuda.empty_cache()
            return True

        def step(self) -> dict[str, Any]:
            return {"answer": json.dumps(self._answer())}

        def _answer(self) -> dict[str, Any]:
            if self._broken is not None:
                return {"broken": self._broken, "node": socket.gethostname()}
            try:
                rivals = self._rivals[self._rung] if self._rung < len(self._rivals) else ()
                metrics, self._state = self._evaluator.evaluate(
                    self._widths, self._rung, self._state, self._repeat, rivals
                )
            except TRIAL_ERRORS as error:
                self._state = None
                return {"reason": str(error)}
            self._rung += 1
            return {"rung": self._rung - 1, "metrics": metrics}

    return PolicyTrial
