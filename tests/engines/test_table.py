import pytest

from autoprune.config import make_config
from autoprune.engines.cluster import Cluster
from autoprune.engines.table import ENGINES


@pytest.mark.parametrize(("engine", "workers", "expected"), [("local", 4, 1), ("ray", 1, 1), ("ray", 2, 2)])
def test_trials_in_flight_at_once(engine, workers, expected):
    assert ENGINES[engine].workers(make_config(engine=engine, workers=workers)) == expected


def test_the_local_engine_uses_one_evaluator_for_all_trials(make_ledger, evaluator):
    loaded, finished = [], []

    def load():
        loaded.append(evaluator())
        return loaded[-1]

    ENGINES["local"].run(make_ledger(trials=3), load, finished.append, Cluster(), lambda: None)
    assert len(loaded) == 1
    assert finished == [0, 1, 2]


def test_an_engine_in_this_process_has_nothing_to_check():
    ENGINES["local"].check(Cluster("nowhere:1"))


def test_the_ray_engine_checks_the_same_cluster(monkeypatch):
    ray = pytest.importorskip("autoprune.engines.ray", reason="pip install 'ray[tune]'")
    checked = []
    monkeypatch.setattr(ray, "check", checked.append)
    ENGINES["ray"].check(Cluster("auto"))
    assert checked == [Cluster("auto")]


def test_the_ray_engine_gets_all_that_it_needs(make_ledger, monkeypatch):
    ray = pytest.importorskip("autoprune.engines.ray", reason="pip install 'ray[tune]'")
    calls = []
    monkeypatch.setattr(ray, "run", lambda *arguments: calls.append(arguments))
    arguments = (make_ledger(), object, print, Cluster("auto"), repr)
    ENGINES["ray"].run(*arguments)
    assert calls == [arguments]
