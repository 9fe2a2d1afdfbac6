"""Metrics of a search for TensorBoard and MLflow, written by the driver alone, after each trial."""

import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Protocol

from autoprune.config import Config
from autoprune.errors import ConfigError, RunError
from autoprune.fields import Track
from autoprune.files import unwritable
from autoprune.passwords import hide
from autoprune.progress import say
from autoprune.run.directory import RunDirectory
from autoprune.search.status import best_map
from autoprune.study.ledger import Ledger
from autoprune.study.records import Record

EXPERIMENT = "autoprune"  # MLflow's name for what holds all runs of this program
MOST_AT_ONCE = 1000  # values that MLflow takes in one request
RETRIES = "2"  # MLflow's own seven keep a driver waiting for four minutes


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes one trial's values; ``step`` is its number."""

    def close(self) -> None:
        """Ends the writing."""


class TensorBoard:
    """A new event file in a folder: `tensorboard --logdir runs`.

    Args:
        folder: of the event files.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from tensorboardX import RecordWriter
                from tensorboardX.proto.event_pb2 import Event
                from tensorboardX.summary import scalar
            except ImportError as missing:
                raise ConfigError(
                    "--track tensorboard needs tensorboardX: pip install tensorboardX"
                ) from missing
        # Not its SummaryWriter, whose thread dies of a full disk: the search would wait for it for ever.
        self._folder, self._event, self._scalar = folder, Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each scalar's curve.

        Raises:
            RunError: the disk is full, or the folder can't be written.
        """
        try:
            for name, value in values.items():
                self._write(step=step, summary=self._scalar(name, value))
            self._records.flush()
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def close(self) -> None:
        """Closes the event file; what it holds was written by `log`, which says what could not be."""
        with suppress(OSError):
            self._records.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())


class MLflow:
    """One MLflow run for a search, on the server that ``MLFLOW_TRACKING_URI`` names; resumed with it.

    A server that is away for a while does not end the search: what it missed is sent with the next trial.

    Args:
        name: of the run.
        known: id of the run that an earlier driver began, if any; resumed where the server has it.
        settings: written once, as the run's parameters.

    Raises:
        ConfigError: MLflow is not installed.
        RunError: the server can't be reached.
    """

    def __init__(self, name: str, known: str | None, settings: Mapping[str, Any]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from mlflow.entities import Metric
                from mlflow.exceptions import MlflowException
                from mlflow.tracking import MlflowClient
        except ImportError as missing:
            raise ConfigError("--track mlflow needs MLflow: pip install 'autoprune[mlflow]'") from missing
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # tables that it makes are no news
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        self._metric, self._error = Metric, MlflowException
        self._waiting: list[Any] = []
        self._away = False
        try:
            self._client = MlflowClient()
            self.run_id = self._resume(known) or self._begin(name, settings)
        except Exception as error:  # each kind of server has errors of its own
            raise RunError(f"MLflow can't be reached: {_line(error)}; check MLFLOW_TRACKING_URI") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each metric's curve, now or once the server is there again."""
        now_ms = int(1000 * time.time())
        self._waiting += [self._metric(name, value, now_ms, step) for name, value in values.items()]
        self._send()

    def close(self) -> None:
        """Marks the run as finished."""
        self._send()
        try:
            self._client.set_terminated(self.run_id)
        except self._error as error:
            say(f"MLflow's run {self.run_id} can't be ended: {_line(error)}")
        if self._waiting:
            say(f"MLflow misses {len(self._waiting)} values of this search")

    def _send(self) -> None:
        """Sends what waits; says so once where the server is away."""
        try:
            while self._waiting:
                self._client.log_batch(self.run_id, metrics=self._waiting[:MOST_AT_ONCE])
                del self._waiting[:MOST_AT_ONCE]
            self._away = False
        except self._error as error:
            if not self._away:
                say(f"MLflow is away: {_line(error)}; the search goes on, its values are sent later")
            self._away = True

    def _resume(self, known: str | None) -> str | None:
        """The known run, as running; ``None`` where this server has none of that id."""
        if known is None:
            return None
        try:
            stage = self._client.get_run(known).info.lifecycle_stage
        except self._error as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if stage != "active":
            return None
        self._client.update_run(known, status="RUNNING")
        return known

    def _begin(self, name: str, settings: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        run_id = str(self._client.create_run(experiment_id, run_name=name).info.run_id)
        for key, value in settings.items():
            self._client.log_param(run_id, key, str(value)[:500])
        return run_id


def _line(error: Exception) -> str:
    return " ".join(hide(str(error), os.environ.get("MLFLOW_TRACKING_URI")).split())[:200]


def open_trackers(config: Config, directory: RunDirectory, ledger: Ledger) -> list[Tracker]:
    """The trackers that ``config.track`` asks for.

    Raises:
        ConfigError: one that is asked for is not installed.
        RunError: MLflow's server can't be reached.
    """

    def mlflow() -> Tracker:
        tracker = MLflow(
            directory.path.resolve().name, ledger.notes.get("mlflow_run"), config.model_dump(mode="json")
        )
        ledger.note("mlflow_run", tracker.run_id)
        return tracker

    makers: dict[Track, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(directory.tensorboard),
        "mlflow": mlflow,
    }
    with ExitStack() as opened:
        trackers = [opened.enter_context(closing(makers[name]())) for name in config.track]
        opened.pop_all()  # all are open: the caller closes them
        return trackers


def values_of(record: Record, best: float | None, done: int) -> dict[str, float]:
    """What is drawn of a trial: its metrics, seconds by rung, and the best mAP so far."""
    values = {f"trial/{name}": value for name, value in record.values.items()}
    for rung, metrics in enumerate(record.rungs):
        values[f"rung_{rung}/map"] = metrics["map"]
        values[f"rung_{rung}/seconds"] = sum(value for name, value in metrics.items() if name.endswith("_s"))
    values["search/trials"] = float(done)
    return values if best is None else {**values, "search/best_map": best}


def log_trial(trackers: Sequence[Tracker], record: Record, finished: Sequence[Record]) -> None:
    """Writes a finished trial to every tracker."""
    if trackers and record.rungs:
        values = values_of(record, best_map(finished), len(finished))
        for tracker in trackers:
            tracker.log(values, record.number)
