"""One search that the tests of the folder read, and what they compare of searches."""

import fcntl
import os

import pytest


@pytest.fixture(scope="session")
def finished_run(demo_settings, tmp_path_factory):
    """The result of a search of nine trials: warm starts, and trials of the sampler.

    Made by the first process of a test session that asks, for all of them; it is for reading.
    """
    from autoprune.run.results import load_result
    from autoprune.search.pipeline import search

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    complete = shared / "nine_trials.complete"
    with (shared / "nine_trials.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            search({**demo_settings, "trials": 9, "out": shared / "nine_trials"})
            complete.touch()
    return load_result(shared / "nine_trials")


def outcome(result):
    """What has to repeat under the same seed: of each trial all but the times."""
    return [
        (r.number, r.origin, r.state, dict(r.widths), [m["map"] for m in r.rungs]) for r in result.records
    ]
