"""Work that is no trial: it is done side by side, and again where a worker dies."""

import os
import signal
from functools import partial

import pytest

ray = pytest.importorskip("ray", reason="pip install 'ray[tune]'")

from autoprune.engines.cluster import Cluster  # noqa: E402
from autoprune.engines.ray_map import map_on_workers  # noqa: E402
from autoprune.errors import RunError  # noqa: E402

from .conftest import RAY_WARNINGS, connected_engine  # noqa: E402

pytestmark = [*RAY_WARNINGS, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def engine():
    with connected_engine(cpus=2) as engine:
        yield engine


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


def test_the_work_of_a_killed_worker_is_done_again(tmp_path):
    items = ["a", "victim", "b", "c"]
    results = dict(map_on_workers(partial(load, tmp_path, 2), items, Cluster(), workers=2))
    assert results == {item: f"{item}!" for item in items}
    assert len(list(tmp_path.glob("victim-*"))) == 3
    assert len(list(tmp_path.glob("a-*"))) == 1


def test_work_that_kills_every_worker_ends_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"^the worker that had victim was lost 6 times; .*same command$"):
        list(map_on_workers(partial(load, tmp_path, 1000), ["victim"], Cluster(), workers=1))
