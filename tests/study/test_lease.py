import os
import socket
import subprocess
import sys
import time

import optuna
import pytest

from autoprune.errors import RunError
from autoprune.study import lease
from autoprune.study.lease import ATTRIBUTE, STALE_S, Lease, is_driven


@pytest.fixture
def study(tmp_path):
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    yield optuna.create_study(storage=storage, study_name="s")
    storage.remove_session()
    storage.engine.dispose()


NOW = 1e9


def held_by(study, host, pid, ago=0.0):
    study.set_user_attr(ATTRIBUTE, {"host": host, "pid": pid, "beat": NOW - ago})


def lease_of(study):
    return Lease(study, "the study s", clock=lambda: NOW)


def test_a_living_driver_is_named(study):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held_by(study, socket.gethostname(), other.pid)
    with pytest.raises(
        RunError, match=rf"in use by another driver \(host {socket.gethostname()}, pid {other.pid}"
    ):
        lease_of(study)
    other.communicate(b"\n")
    lease_of(study).release()  # it has ended, so there is nothing to wait for


def test_a_driver_on_another_host_is_believed_for_two_minutes(study):
    held_by(study, "node7", 12, ago=STALE_S - 5)
    with pytest.raises(RunError, match="host node7, pid 12, last sign 115 s ago"):
        lease_of(study)
    held_by(study, "node7", 12, ago=STALE_S + 5)
    lease_of(study).release()


def test_of_two_drivers_that_see_a_free_lease_the_last_to_write_has_it(study, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(lease.time, "sleep", lambda _: held_by(study, "node7", 12))
        with pytest.raises(RunError, match="host node7, pid 12"):
            lease_of(study)
    assert study.user_attrs[ATTRIBUTE]["host"] == "node7"  # which the refused one does not take away


def test_it_is_renewed_and_given_back(study, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    held = Lease(study, "the study s")
    first = study.user_attrs[ATTRIBUTE]
    assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
    while study.user_attrs[ATTRIBUTE]["beat"] == first["beat"]:
        time.sleep(0.01)
    held.release()
    assert study.user_attrs[ATTRIBUTE] is None


def test_a_database_that_is_away_for_a_while_does_not_end_the_renewal(study, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    held, write, failures = Lease(study, "the study s"), study.set_user_attr, []

    def away(name, value):
        if len(failures) < 2:
            failures.append(name)
            raise optuna.exceptions.StorageInternalError("the database is away")
        write(name, value)

    monkeypatch.setattr(study, "set_user_attr", away)
    first = study.user_attrs[ATTRIBUTE]["beat"]
    while study.user_attrs[ATTRIBUTE]["beat"] == first:
        assert held._thread.is_alive()
        time.sleep(0.01)
    assert len(failures) == 2
    held.release()


def test_a_driver_that_was_silent_too_long_does_not_take_the_study_back(study, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.02)
    held = lease_of(study)
    held.check()
    held_by(study, "node7", 12)  # which found a stale lease, and went on
    held._thread.join()
    with pytest.raises(RunError, match=r"the study s was taken over by .*host node7, pid 12\)"):
        held.check()
    held.release()
    assert study.user_attrs[ATTRIBUTE]["host"] == "node7"


def test_who_reads_a_study_is_told_whether_it_is_driven(study):
    def driven():
        return is_driven(study, clock=lambda: NOW)

    assert not driven()
    held = lease_of(study)
    assert driven()
    held.release()
    assert not driven()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    held_by(study, socket.gethostname(), ended.pid)
    assert not driven()
    for ago, expected in ((STALE_S - 5, True), (STALE_S + 5, False)):
        held_by(study, "node7", 12, ago)
        assert driven() == expected
