"""Work that is no trial: it is done side by side, and again where a worker dies."""

import os
import signal
from functools import partial

import pytest

from autoprune.engines.cluster import Cluster
from autoprune.errors import RunError

from .conftest import RAY_WARNINGS, connected_engine

pytestmark = [*RAY_WARNINGS, pytest.mark.slow]


@pytest.fixture(scope="module")
def map_on_workers():
    pytest.importorskip("ray", reason="pip install 'ray[tune]'")
    with connected_engine(cpus=2) as engine:
        yield engine.map_on_workers


def load(folder, deaths):
    """A function that notes its calls, and that kills its process at the first calls with ``victim``."""

    def function(item):
        file = folder / f"{item}-{os.getpid()}"
        calls = len(list(folder.glob(f"{item}-*")))
        file.touch()
        if item == "victim" and calls < deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{item}!"

    return function


def test_the_work_of_a_killed_worker_is_done_again(map_on_workers, tmp_path):
    items = ["a", "victim", "b", "c"]
    results = dict(map_on_workers(partial(load, tmp_path, 1), items, Cluster(), workers=2))
    assert results == {item: f"{item}!" for item in items}
    assert len(list(tmp_path.glob("victim-*"))) == 2
    assert len(list(tmp_path.glob("a-*"))) == 1


def test_work_that_kills_every_worker_ends_in_one_line(map_on_workers, tmp_path, monkeypatch):
    monkeypatch.setattr("autoprune.engines.ray_map.RETRIES", 1)
    with pytest.raises(RunError, match=r"^the worker that had victim was lost 2 times; .*same command$"):
        list(map_on_workers(partial(load, tmp_path, 1000), ["victim"], Cluster(), workers=1))
