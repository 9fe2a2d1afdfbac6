"""What TensorBoard's and MLflow's own readers find of a search."""

import builtins
import warnings

import pytest

from autoprune import tracking
from autoprune.config import make_config
from autoprune.errors import ConfigError
from autoprune.search.trials import Record

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
        found = {
            tag: [(point.step, pytest.approx(point.value)) for point in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
    assert found == EXPECTED


def test_mlflow_holds_the_curves_in_one_run_however_often_it_is_resumed(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client_of = pytest.importorskip("mlflow.tracking").MlflowClient
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = tracking.MLflow("mine", None, {"trials": 8})
        log([first])
        again = tracking.MLflow("mine", first.run_id, {"trials": 8})
        assert again.run_id == first.run_id
        client = client_of()
        found = {
            name: [(point.step, point.value) for point in client.get_metric_history(first.run_id, name)]
            for name in EXPECTED
        }
    assert found == EXPECTED
    assert client.get_run(first.run_id).data.params == {"trials": "8"}


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


def test_none_turns_tracking_off():
    assert make_config(track="none").track == ()
    assert make_config(track="tensorboard,mlflow").track == ("tensorboard", "mlflow")
    assert make_config().track == ("tensorboard",)
