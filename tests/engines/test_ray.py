"""The engine as a whole: connected to a cluster, or with a Ray that it starts and ends itself."""

import tempfile
import warnings

import pytest

from autoprune.engines import local
from autoprune.engines.ray_setup import SCRATCH_PREFIX
from autoprune.errors import RunError

from .conftest import RAY_WARNINGS, ray_variables, stopped_clock

pytestmark = RAY_WARNINGS


@pytest.fixture(scope="module")
def engine():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from autoprune.engines import ray

        return ray


@pytest.mark.slow
def test_either_engine_continues_a_run_of_the_other(engine, make_ledger, evaluator, tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    local.run(make_ledger(trials=2), evaluator(), lambda number: None)
    with ray_variables():
        engine.run(
            make_ledger(trials=4),
            evaluator,
            lambda number: folders.extend(tmp_path.glob(f"{SCRATCH_PREFIX}*")),
            engine.Cluster(workers=1),
            clock=stopped_clock,
        )
    assert not engine.ray.is_initialized()
    assert folders  # while it ran
    assert not list(tmp_path.glob(f"{SCRATCH_PREFIX}*"))
    last = make_ledger(trials=6)
    local.run(last, evaluator(), lambda number: None)
    assert len({tuple(r.widths.values()) for r in last.finished()}) == 6


def test_a_cluster_of_other_versions_is_refused_in_one_line(make_ledger, evaluator, monkeypatch, engine):
    def other(**_):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1"
        )

    monkeypatch.setattr(engine.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(engine.ray, "init", other)
    with pytest.raises(
        RunError, match=r"at auto has other versions .*Ray: 2\.9\.0 Python: 3\.9\.1; install the same"
    ):
        engine.run(make_ledger(), evaluator, lambda number: None, engine.Cluster("auto"))


@pytest.mark.parametrize("address", [None, "local"])
def test_a_check_starts_no_ray_here(engine, monkeypatch, address):
    monkeypatch.setattr(engine.ray, "init", lambda **_: pytest.fail("the search starts it"))
    engine.check(engine.Cluster(address))


def test_the_connection_is_tried_again_where_ray_loses_a_process(engine, monkeypatch):
    tries = []

    def init(address, **options):
        tries.append(address)
        if len(tries) < lost:
            raise ConnectionAbortedError("Initialization failure from server")

    monkeypatch.setattr(engine.ray, "init", init)
    monkeypatch.setattr(engine, "CONNECT_PAUSES_S", (0.0, 0.0))
    lost = 3
    engine._init(address="ray://head:10001")
    assert tries == ["ray://head:10001"] * 3
    lost = 99
    with pytest.raises(ConnectionAbortedError):
        engine._init(address="ray://head:10001")
    assert len(tries) == 6
