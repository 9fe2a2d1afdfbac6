"""What TensorBoard's and MLflow's own readers find of a search."""

import builtins
import io
import socket
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from autoprune import progress
from autoprune.config import make_config
from autoprune.errors import ConfigError, RunError
from autoprune.run.directory import RunDirectory
from autoprune.search import tracking
from autoprune.study.records import Record

FIRST = Record(
    0, "stopped", "uniform", None, {}, rungs=({"map": 0.2, "gflops": 3.0, "training_s": 2.0, "other_s": 1.0},)
)
SECOND = Record(
    4,
    "complete",
    "sampler",
    None,
    {},
    rungs=({"map": 0.3, "gflops": 2.0, "training_s": 2.0}, {"map": 0.4, "gflops": 2.0, "training_s": 8.0}),
)


def log(trackers):
    tracking.log_trial(trackers, FIRST, [FIRST])
    tracking.log_trial(trackers, SECOND, [FIRST, SECOND])
    for tracker in trackers:
        tracker.close()


EXPECTED = {
    "trial/map": [(0, 0.2), (4, 0.4)],
    "trial/gflops": [(0, 3.0), (4, 2.0)],
    "rung_0/map": [(0, 0.2), (4, 0.3)],
    "rung_0/seconds": [(0, 3.0), (4, 2.0)],
    "rung_1/map": [(4, 0.4)],
    "rung_1/seconds": [(4, 8.0)],
    "search/trials": [(0, 1.0), (4, 2.0)],
    "search/best_map": [(4, 0.4)],
}


def test_tensorboard_reads_the_curves(tmp_path):
    log([tracking.TensorBoard(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
        curves = {
            tag: [(point.step, pytest.approx(point.value)) for point in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
    assert curves == EXPECTED


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """The library itself, with a database of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("mlflow.tracking", reason="pip install 'autoprune[mlflow]'")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        yield library


def curves(mlflow, run_id):
    client = mlflow.MlflowClient()
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }


def test_mlflow_holds_the_curves_in_one_run_however_often_it_is_resumed(mlflow):
    client = mlflow.MlflowClient()
    first = tracking.MLflow("mine", None, {"trials": 8})
    assert client.get_run(first.run_id).info.status == "RUNNING"
    log([first])
    assert client.get_run(first.run_id).info.status == "FINISHED"
    again = tracking.MLflow("mine", first.run_id, {"trials": 8})
    assert again.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "RUNNING"
    assert curves(mlflow, first.run_id) == EXPECTED
    assert client.get_run(first.run_id).data.params == {"trials": "8"}
    assert client.get_run(first.run_id).info.run_name == "mine"


def test_a_run_that_the_server_does_not_have_is_begun_again(mlflow):
    deleted = tracking.MLflow("mine", None, {}).run_id
    mlflow.MlflowClient().delete_run(deleted)
    for gone in (deleted, "0" * 32):
        again = tracking.MLflow("mine", gone, {"trials": 8})
        assert again.run_id != gone
        log([again])
        assert curves(mlflow, again.run_id) == EXPECTED


def test_an_mlflow_that_is_away_for_a_while_misses_nothing(mlflow, monkeypatch):
    from mlflow.exceptions import MlflowException

    def away(*_, **__):
        raise MlflowException("no route to host\n[Errno 113]")

    tracker, said = tracking.MLflow("mine", None, {}), io.StringIO()
    with progress.show(Console(file=said, width=300)):
        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "log_batch", away)
            tracking.log_trial([tracker], FIRST, [FIRST])
            tracking.log_trial([tracker], FIRST, [FIRST])
        assert said.getvalue() == (
            "MLflow is away: no route to host [Errno 113]; the search goes on, its values are sent later\n"
        )
        tracking.log_trial([tracker], SECOND, [FIRST, SECOND])
        tracker.close()
    assert said.getvalue().count("\n") == 1
    sent = {name: sorted(set(points)) for name, points in curves(mlflow, tracker.run_id).items()}
    assert sent == EXPECTED


def test_a_server_that_is_not_there_is_one_line(mlflow, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"^MLflow can't be reached: .*; check MLFLOW_TRACKING_URI$"):
        tracking.MLflow("mine", None, {})


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] in ("mlflow", "tensorboardX"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="pip install 'autoprune\\[mlflow\\]'"):
        tracking.MLflow("mine", None, {})
    with pytest.raises(ConfigError, match="pip install tensorboardX"):
        tracking.TensorBoard("nowhere")


def test_messages_and_parameters_of_mlflow_hold_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host")
    error = RuntimeError("API request to https://me:secret@host/api failed: no such user me, secret")
    assert tracking._line(error) == "API request to https://me:***@host/api failed: no such user me, ***"
    config = make_config(storage="postgresql://me:secret@host/db")
    assert config.model_dump(mode="json")["storage"] == "postgresql://me:***@host/db"


def test_none_turns_tracking_off():
    assert make_config(track="none").track == ()
    assert make_config(track="tensorboard,mlflow").track == ("tensorboard", "mlflow")
    assert make_config().track == ("tensorboard",)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux that is a full disk")
def test_a_full_disk_is_one_line_and_no_thread_waits_for_it(tmp_path, monkeypatch):
    threads = threading.active_count()
    writer = pytest.importorskip("tensorboardX.record_writer")
    monkeypatch.setattr(writer, "open_file", lambda path: io.BufferedWriter(io.FileIO("/dev/full", "w")))
    tracker = tracking.TensorBoard(tmp_path / "tensorboard")
    for _ in range(3):  # more values than tensorboardX's own queue takes
        with pytest.raises(RunError, match=f"the disk is full: {tmp_path}/tensorboard was not written"):
            tracker.log({f"trial/{number}": 0.5 for number in range(8)}, step=1)
    tracker.close()  # the search ends with the line above, not with another error
    assert threading.active_count() == threads


def test_what_was_opened_is_closed_where_another_tracker_fails(tmp_path, monkeypatch):
    ended, close = [], tracking.TensorBoard.close

    def refuse(*_):
        raise RunError("MLflow can't be reached")

    def closed(self):
        ended.append(self)
        close(self)

    monkeypatch.setattr(tracking, "MLflow", refuse)
    monkeypatch.setattr(tracking.TensorBoard, "close", closed)
    directory, ledger = RunDirectory(tmp_path), SimpleNamespace(notes={})
    with pytest.raises(RunError, match="MLflow"):
        tracking.open_trackers(make_config(track="tensorboard,mlflow"), directory, ledger)
    assert len(ended) == 1
    (opened,) = tracking.open_trackers(make_config(track="tensorboard"), directory, ledger)
    assert opened not in ended
    opened.close()
