"""Our journal file against Optuna's own backend, which must read the same study from it."""

import errno
import os

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.errors import RunError
from autoprune.study.journal import Journal

DISTRIBUTIONS = {
    "a": optuna.distributions.FloatDistribution(0, 1),
    "b": optuna.distributions.FloatDistribution(0, 1),
    "budget": optuna.distributions.CategoricalDistribution([0, 1]),
}


def new_study(backend, sampler=None):
    return optuna.create_study(
        storage=JournalStorage(backend),
        study_name="s",
        directions=["maximize", "minimize"],
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
        load_if_exists=True,
    )


def step(study, batch):
    """A trial from ask to tell, as the ledger does it."""
    with batch():
        trial = study.ask(DISTRIBUTIONS)
        study._storage.set_trial_user_attr(trial._trial_id, "widths", {"a": 3})
    with batch():
        study._storage.set_trial_user_attr(trial._trial_id, "rung_0", {"map": 0.5})
        study.tell(trial, [trial.params["a"], trial.params["b"]])


def content(study):
    fields = ("number", "state", "params", "distributions", "values", "user_attrs")
    return [{name: getattr(trial, name) for name in fields} for trial in study.get_trials()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "study.journal"


@pytest.mark.parametrize("sampler", ["RandomSampler", "TPESampler", "NSGAIISampler"])
def test_optuna_reads_what_was_written_in_batches(path, sampler):
    journal = Journal(path)
    study = new_study(journal, getattr(optuna.samplers, sampler)(seed=1))
    for number in range(12):
        if number == 5:
            study.enqueue_trial({"a": 0.25, "b": 0.5, "budget": 1})
        step(study, journal.batch)
    study.set_user_attr("note", 1)
    optunas = new_study(JournalFileBackend(str(path)))
    assert content(optunas) == content(study) == content(new_study(Journal(path)))
    assert optunas.trials[5].params == {"a": 0.25, "b": 0.5, "budget": 1}
    assert [t.system_attrs for t in optunas.trials] == [t.system_attrs for t in study.trials]
    assert optunas.user_attrs == {"note": 1}


def test_a_new_trial_with_its_parameters_is_one_record(path):
    journal = Journal(path)
    study = new_study(journal)
    before = path.read_bytes().count(b"\n")
    step(study, journal.batch)
    assert path.read_bytes().count(b"\n") == before + 3  # made, its metrics, its end


def test_another_process_may_write_between_batches(path):
    journal = Journal(path)
    study, other = new_study(journal), new_study(JournalFileBackend(str(path)))
    for _ in range(3):
        step(study, journal.batch)
        other.enqueue_trial({"a": 0.5, "b": 0.5, "budget": 0})
        other.set_user_attr("seen", len(other.trials))
        step(study, journal.batch)
    assert content(study) == content(other)
    assert [trial.params["a"] for trial in study.trials][1] == 0.5


def test_half_a_line_of_somebody_else_is_not_read(path):
    study = new_study(Journal(path))
    whole = path.read_bytes()
    line = b'{"op_code":2,"worker_id":"x","study_id":0,"user_attr":{"note":1}}\n'
    path.write_bytes(whole + line[:20])
    assert study.user_attrs == {}
    path.write_bytes(whole + line)
    assert study.user_attrs == {"note": 1}


@pytest.mark.parametrize("batched", [False, True])
def test_a_full_disk_leaves_no_half_line(path, monkeypatch, batched):
    journal = Journal(path)
    study = new_study(journal)
    step(study, journal.batch)
    whole, write = path.read_bytes(), os.write

    def full(handle, content):
        if len(content) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, content[: len(content) // 2])

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        with pytest.raises(RunError, match=r"disk is full: .*study\.journal was not written"):
            step(study, journal.batch) if batched else study.set_user_attr("note", "x" * 100)
    assert path.read_bytes() == whole
    assert not path.with_name("study.journal.lock").is_symlink()
    assert len(new_study(Journal(path)).trials) == 1


def test_ctrl_c_while_the_disk_is_awaited_takes_nothing_back(path, monkeypatch):
    """Another process may have read these records already."""
    journal = Journal(path)
    study = new_study(journal)

    def interrupted(handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.set_user_attr("note", "kept")
    assert new_study(Journal(path)).user_attrs["note"] == "kept"


def test_an_error_in_a_batch_keeps_what_the_study_was_told(path):
    journal = Journal(path)
    study = new_study(journal)

    def stopped():
        with journal.batch():
            study.ask(DISTRIBUTIONS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert content(new_study(JournalFileBackend(str(path)))) == content(study)
    assert len(study.trials) == 1
