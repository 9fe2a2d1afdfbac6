"""Metrics of a search for TensorBoard and MLflow, written by the driver alone, after each trial."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autoprune.config import Config, Track
from autoprune.errors import ConfigError, RunError
from autoprune.search.ledger import Ledger
from autoprune.search.trials import Record


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes one trial's values; ``step`` is its number."""

    def close(self) -> None:
        """Ends the writing."""


class TensorBoard:
    """Event files in ``folder``: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path) -> None:
        """Opens a new event file.

        Raises:
            ConfigError: tensorboardX is not installed.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from tensorboardX import SummaryWriter
            except ImportError as missing:
                raise ConfigError(
                    "--track tensorboard needs tensorboardX: pip install tensorboardX"
                ) from missing
            self._writer = SummaryWriter(str(folder), write_to_disk=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each scalar's curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class MLflow:
    """One MLflow run for a search, on the server that ``MLFLOW_TRACKING_URI`` names; resumed with it.

    Args:
        name: of the run.
        known: id of the run that an earlier driver began, if any.
        settings: written once, as the run's parameters.
    """

    def __init__(self, name: str, known: str | None, settings: Mapping[str, Any]) -> None:
        """Begins the run, or goes on with the known one.

        Raises:
            ConfigError: MLflow is not installed.
            RunError: the server can't be reached.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from mlflow.tracking import MlflowClient
        except ImportError as missing:
            raise ConfigError("--track mlflow needs MLflow: pip install 'autoprune[mlflow]'") from missing
        try:
            self._client = MlflowClient()
            self.run_id = known or self._begin(name, settings)
        except Exception as error:  # each kind of server has errors of its own
            problem = " ".join(str(error).split())[:200]
            raise RunError(f"MLflow can't be reached: {problem}; check MLFLOW_TRACKING_URI") from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each metric's curve."""
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self.run_id)

    def _begin(self, name: str, settings: Mapping[str, Any]) -> str:
        found = self._client.get_experiment_by_name("autoprune")
        experiment = found.experiment_id if found else self._client.create_experiment("autoprune")
        run_id = str(self._client.create_run(experiment, run_name=name).info.run_id)
        for key, value in settings.items():
            self._client.log_param(run_id, key, str(value)[:500])
        return run_id


def open_trackers(config: Config, folder: Path, ledger: Ledger) -> list[Tracker]:
    """The trackers that ``config.track`` asks for.

    Raises:
        ConfigError: one that is asked for is not installed.
        RunError: MLflow's server can't be reached.
    """

    def mlflow() -> Tracker:
        tracker = MLflow(
            folder.resolve().name, ledger.notes.get("mlflow_run"), config.model_dump(mode="json")
        )
        ledger.note("mlflow_run", tracker.run_id)
        return tracker

    makers: dict[Track, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "mlflow": mlflow,
    }
    return [makers[name]() for name in config.track]


def values_of(record: Record, best: float | None, done: int) -> dict[str, float]:
    """What is drawn of a trial: its metrics, seconds by rung, and the best mAP so far."""
    values = {f"trial/{name}": value for name, value in record.metrics.items() if not name.endswith("_s")}
    for rung, metrics in enumerate(record.rungs):
        values[f"rung_{rung}/map"] = metrics["map"]
        values[f"rung_{rung}/seconds"] = sum(value for name, value in metrics.items() if name.endswith("_s"))
    values["search/trials"] = float(done)
    return values if best is None else {**values, "search/best_map": best}


def log_trial(trackers: Sequence[Tracker], record: Record, finished: Sequence[Record]) -> None:
    """Writes a finished trial to every tracker."""
    if trackers and record.rungs:
        best = max((other.metrics["map"] for other in finished if other.state == "complete"), default=None)
        for tracker in trackers:
            tracker.log(values_of(record, best, len(finished)), record.number)
