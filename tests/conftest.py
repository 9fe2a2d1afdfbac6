"""What several folders share: a search of the demo detector in seconds, and trials that compute nothing."""

import fcntl
import os
from dataclasses import dataclass, field

import pytest

# Several processes run the tests; were each to use all cores, they would mostly wait for each other.
# Set before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: a long file that comes last is worked on by one process alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Keeps what tests measure out of the user's own cache; commands that they start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def demo_settings(tmp_path_factory):
    """Fields of `Config` for a search that takes seconds; `out` is for the test to give."""
    from autoprune.data import demo_detector
    from autoprune.data.shapes import make_shapes

    data = make_shapes(
        tmp_path_factory.mktemp("shapes"),
        seed=demo_detector.DATA_SEED,
        train=8,
        val=6,
        size=demo_detector.IMAGE_SIZE,
    )
    return {
        "model": demo_detector.MODEL.name,
        "model_arguments": demo_detector.MODEL.arguments,
        "weights": str(demo_detector.WEIGHTS),
        "data": data,
        "device": "cpu",
        "threads": 1,
        "budget_gflops": "70%",
        "rungs": (0, 1),
        "confirm": 0,
        "batch_size": 2,
        "importance_images": 2,
        "reconstruct_images": 0,  # half of the time, where it is not what is tested
        "recalibration_images": 4,
        "steps": 2,
    }


@pytest.fixture(scope="session")
def checked_run(demo_settings, tmp_path_factory):
    """The folder of a search of five trials, four of which are recovered to check its proxies.

    Made by the first process of a test session that asks, for all of them; it is for reading.
    """
    from autoprune.search.pipeline import search

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = shared / "checked"
    with (shared / "checked.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "proxies.json").exists():
            settings = {**demo_settings, "budget_gflops": "60%", "proxy_images": 3}
            search({**settings, "trials": 5, "confirm": 1, "check_proxies": 4, "out": out})
    return out


@dataclass
class FakePlan:
    """Two groups of 100 channels."""

    variables: tuple = ("a", "b")
    budgets: tuple = (None,)
    warm_starts: tuple = ()
    identity: dict = field(default_factory=dict)

    def widths(self, fractions, budget):
        return {
            name: max(1, round(100 * (1 - fraction))) for name, fraction in zip("ab", fractions, strict=True)
        }

    def keep(self, widths):
        return {name: tuple(range(width)) for name, width in widths.items()}


@pytest.fixture
def make_ledger(tmp_path):
    """Ledgers of two rungs and a `FakePlan`, as engines need them; other folders have their own."""
    from autoprune.study.ledger import Ledger
    from autoprune.study.trials import LedgerSettings, WarmStart

    plan = FakePlan(warm_starts=(WarmStart("uniform", 0, (0.5, 0.5)),))

    def make(trials=6, name="study", **settings):
        settings = LedgerSettings(trials=trials, rungs=2, **settings)
        return Ledger(tmp_path / f"{name}.journal", "s", plan, settings)

    return make


@pytest.fixture
def evaluator():
    """A formula for an objective; a class made here travels to Ray's workers by value."""

    class Formula:
        """Fails where group `b` keeps more than `fails_above`; counts its evaluations."""

        def __init__(self, fails_above=1000):
            self.fails_above = fails_above
            self.evaluations = 0

        def evaluate(self, keep, rung, state, repeat=0):
            from autoprune.errors import TrainingError

            assert rung == (state or 0), "rungs are climbed one by one, with the state of the one below"
            self.evaluations += 1
            if len(keep["b"]) > self.fails_above:
                raise TrainingError("the loss is not finite at step 3")
            value = 0.5 + 0.1 * rung - 0.05 * repeat - abs(len(keep["a"]) - 80) / 200
            metrics = {"map": value, "gflops": len(keep["a"]) / 10, "evaluations": self.evaluations}
            return metrics, rung + 1

    return Formula
