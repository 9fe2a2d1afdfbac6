"""Trials on a Ray cluster, through Ray Tune. The ledger decides; Tune only carries work to workers.

One actor a worker loads detector, data and teacher once and is reused for all its trials. To it goes a
policy (kilobytes), back come metrics (bytes). Checkpoints and Tune's own files are not used.
"""

import json
import math
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autoprune.engines.local import TRIAL_ERRORS
from autoprune.errors import AutopruneError, ConfigError, RunError
from autoprune.policy import from_ranges, to_ranges
from autoprune.progress import say
from autoprune.search.ledger import Ledger
from autoprune.search.trials import Candidate, Evaluator

try:
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
except ImportError as missing:
    raise ConfigError(
        "engine ray needs Ray: pip install 'ray[tune]>=2.40', or choose --engine local"
    ) from missing

KNOCK_S = 10.0  # a head node that listens answers within this

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Cluster:
    """Where to run and how much each worker takes; see `Config` for the fields of the same names."""

    address: str | None = None
    workers: int = 1
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0


def run(
    ledger: Ledger, load: Callable[[], Evaluator[Any]], finished: Callable[[int], None], cluster: Cluster
) -> None:
    """Runs trials until the ledger has no more.

    Args:
        ledger: asks, decides and keeps; it stays in this process.
        load: makes the objective, once in each worker. It is sent there, so it must pickle.
        finished: called with a trial's number after each trial.
        cluster: where, and how many at once.

    Raises:
        RunError: there is no cluster at the address.
        ConfigError: no node has what one worker takes.
    """
    with _environment(), _connected(cluster), _quiet(), _scratch() as folder:
        workers = _capacity(cluster)
        messenger = _Messenger(ledger, finished)
        trainable = tune.with_resources(
            _trainable(load),
            tune.PlacementGroupFactory([{"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial}]),
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_LedgerSearcher(messenger),
                scheduler=_LedgerScheduler(messenger),
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:04d}",
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            raise messenger.error or error from error
        if messenger.error is not None:
            raise messenger.error


class _Messenger:
    """What Tune's searcher and scheduler share: the ledger, and which Tune trial is which of its trials."""

    def __init__(self, ledger: Ledger, finished: Callable[[int], None]) -> None:
        self.ledger, self._finished = ledger, finished
        self.numbers: dict[str, int] = {}
        self.error: AutopruneError | OSError | None = None

    def ask(self, trial_id: str) -> Candidate | None:
        try:
            candidate = None if self.error is not None else self.ledger.ask()
        except (AutopruneError, OSError) as error:  # the disk is full: end Tune's loop, then raise
            self.error = error
            return None
        if candidate is not None:
            self.numbers[trial_id] = candidate.number
        return candidate

    @property
    def done(self) -> bool:
        return self.error is not None or self.ledger.done

    def report(self, trial_id: str, answer: Mapping[str, Any]) -> bool:
        """Passes a worker's answer to the ledger; whether the trial goes on."""
        number = self.numbers[trial_id]
        try:
            if "reason" in answer:
                self.ledger.fail(number, answer["reason"])
                return False
            return self.ledger.report(number, answer["rung"], answer["metrics"])
        except (AutopruneError, OSError) as error:
            self.error = error
            return False

    def finish(self, trial_id: str, lost: bool) -> None:
        """Ends a trial; one whose worker was lost goes back into the queue."""
        number = self.numbers.pop(trial_id)
        try:
            if lost:
                self.ledger.lose(number, "its worker died")
            self._finished(number)
        except (AutopruneError, OSError) as error:
            self.error = error


class _LedgerSearcher(Searcher):  # type: ignore[misc, unused-ignore]
    """Hands the ledger's trials to Tune."""

    def __init__(self, messenger: _Messenger) -> None:
        super().__init__()
        self._messenger = messenger

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if (candidate := self._messenger.ask(trial_id)) is not None:
            keep = {name: to_ranges(kept) for name, kept in candidate.keep.items()}
            return {"number": candidate.number, "keep": json.dumps(keep)}
        return str(Searcher.FINISHED) if self._messenger.done else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._messenger.finish(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: the ledger is the state."""


class _LedgerScheduler(FIFOScheduler):  # type: ignore[misc, unused-ignore]
    """Stops a trial where the ledger says so, which it also does at the top rung."""

    def __init__(self, messenger: _Messenger) -> None:
        super().__init__()
        self._messenger = messenger

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        goes_on = self._messenger.report(trial.trial_id, json.loads(result["answer"]))
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


def _trainable(load: Callable[[], Evaluator[Any]]) -> type:
    """The worker's class; made here so that it travels by value and carries ``load``."""

    class PolicyTrial(tune.Trainable):  # type: ignore[misc, unused-ignore]
        def setup(self, config: dict[str, Any]) -> None:
            self._objective = load()
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            ranges = json.loads(new_config["keep"])
            self._keep = {name: from_ranges(text) for name, text in ranges.items()}
            self._rung, self._state = 0, None
            return True

        def step(self) -> dict[str, Any]:
            try:
                metrics, self._state = self._objective.evaluate(self._keep, self._rung, self._state)
            except TRIAL_ERRORS as error:
                return {"answer": json.dumps({"reason": str(error)})}
            self._rung += 1
            return {"answer": json.dumps({"rung": self._rung - 1, "metrics": metrics})}

    return PolicyTrial


def _capacity(cluster: Cluster) -> int:
    """How many workers fit on the cluster, at most as many as asked for.

    Raises:
        ConfigError: not even one does.
    """
    wanted = {"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial}
    fitting = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            counts = [has.get(name, 0) / amount + 1e-9 for name, amount in wanted.items() if amount > 0]
            fitting += math.floor(min(counts))
    if fitting == 0:
        raise ConfigError(
            f"no Ray node has {cluster.cpus_per_trial:g} CPUs and {cluster.gpus_per_trial:g} GPUs for a "
            "worker; lower --cpus-per-trial or --gpus-per-trial"
        )
    if fitting < cluster.workers:
        say(f"{cluster.workers} workers asked for, the cluster has room for {fitting}")
    return min(fitting, cluster.workers)


@contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    """Connects to the cluster, or starts Ray here; leaves a connection alone that was there before."""
    if ray.is_initialized():
        yield
        return
    here = cluster.address in (None, "local")
    try:
        _knock(cluster.address)
        ray.init(
            address="local" if here else cluster.address,
            include_dashboard=False if here else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"no Ray cluster at {cluster.address}: {' '.join(str(error).split())[:200]}; start one with "
            "`ray start --head`, or leave --address away to start Ray here"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Fails at once where nobody listens at ``HOST:PORT``; ray itself would go on trying for minutes.

    Raises:
        OSError: no connection can be made.
    """
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), KNOCK_S).close()


@contextmanager
def _environment() -> Iterator[None]:
    """Sets what Tune reads from the environment, and puts the old values back."""
    old = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if old[name] is None})
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the warnings that Ray's developers have for one another."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\b")
        yield


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for the files that Tune insists on."""
    folder = tempfile.mkdtemp(prefix="autoprune-ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
