"""A run to show (searched, proxies checked, four of its trials recovered), and summaries made by hand."""

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.config import make_config
from autoprune.report.run_summary import RunSummary
from autoprune.run.results import SearchResult
from autoprune.study.records import Record


@pytest.fixture(scope="session")
def run(checked_run):
    """Its directory."""
    return checked_run


@pytest.fixture(scope="session")
def open_study():
    """Opens the Optuna study of a run directory."""

    def study_of(run):
        storage = JournalStorage(JournalFileBackend(str(run / "study.journal")))
        return optuna.load_study(study_name="autoprune", storage=storage)

    return study_of


@pytest.fixture(scope="session")
def study_trials(run, open_study):
    """By number: the attributes of each trial of `run` that counts, and the mean mAP of the complete ones."""
    attributes = {trial.number: trial.user_attrs for trial in open_study(run).trials}
    again = {one["repeat_of"]: one["rung_1"]["map"] for one in attributes.values() if "repeat_of" in one}
    assert again
    counted = {
        number: one
        for number, one in attributes.items()
        if not {"same_as", "requeued", "repeat_of"} & one.keys()
    }
    means = {
        number: np.mean([one["rung_1"]["map"], *([again[number]] if number in again else [])])
        for number, one in counted.items()
        if "rung_1" in one
    }
    return counted, means


@pytest.fixture
def make_record():
    """A complete trial of two groups at one rung."""

    def make(number, origin="sampler", map=0.5, gflops=3.0, budget=3.5, state="complete", **attributes):
        metrics = {"map": map, "gflops": gflops, "mparams": 2 * gflops}
        widths = {"a": 8, "b": 16}
        return Record(number, state, origin, budget, widths, rungs=(metrics,), **attributes)

    return make


@pytest.fixture
def make_summary(tmp_path):
    """The summary of a run that holds these records, without a front."""

    def make(records=(), dense=None, recovered=None, latencies=None, front=(), **settings):
        dense = {"map": 0.6, "gflops": 6.0, "mparams": 12.0} if dense is None else dense
        result = SearchResult(Path(tmp_path), tuple(front), tuple(records), dense, {})
        config = make_config(out=tmp_path, data=tmp_path, rungs=(0,), **settings)
        return RunSummary(tmp_path, config, result, (), recovered or {}, {}, latencies or {}, None)

    return make
