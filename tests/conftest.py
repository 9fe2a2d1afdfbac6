"""What several folders share: a search of the demo detector in seconds, and trials that compute nothing."""

import fcntl
import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

# Several processes run the tests; were each to use all cores, they would mostly wait for each other.
# Set before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection():
    """Imports and assertion rewriting make millions of objects, of which none is garbage."""
    gc.disable()


def pytest_collection_finish():
    gc.enable()


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
def made_once(tmp_path_factory):
    """``made_once(name, make)``: a folder to read, which ``make(folder)`` fills once for all processes.

    Whichever process of a test session asks first makes it, while the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name, make):
        folder, complete = shared / name, shared / f"{name}.complete"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not complete.exists():
                make(folder)
                complete.touch()
        return folder

    return get


@pytest.fixture(autouse=True)
def runs_to_read_stay_as_they_are(request):
    """Blames the test that writes into a shared run, not a later one that reads it."""
    shared = [name for name in ("checked_run", "finished_run", "sized_run") if name in request.fixturenames]
    runs = [getattr(run, "run", run) for run in map(request.getfixturevalue, shared)]
    before = [_modified(run) for run in runs]
    yield
    assert [_modified(run) for run in runs] == before, "write into a copy of the run"


def _modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def foreground() -> Iterator[None]:
    """SIGINT arrives, also in processes that the test starts: a shell ignores it in what runs behind "&"."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def demo_settings(made_once):
    """Fields of `Config` for a search that takes seconds; `out` is for the test to give."""
    from autoprune.data import demo_detector
    from autoprune.data.shapes import make_shapes

    # One folder for all processes: a run that one of them made must be of the data that another one names.
    data = made_once(
        "shapes",
        lambda folder: make_shapes(
            folder, seed=demo_detector.DATA_SEED, train=8, val=6, size=demo_detector.IMAGE_SIZE
        ),
    )
    # What a pass takes is nothing that tests look at; a session ends after all of them.
    pytest.MonkeyPatch().setattr("autoprune.recovery.recover_policy.LATENCY_PASSES", 1)
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
        "criterion": "joint",  # of those in units of the loss the fastest
        "curves": False,  # a minute
        "reconstruct_images": 0,  # half of the time, where it is not what is tested
        "recalibration_images": 4,
        "steps": 2,
    }


@pytest.fixture(scope="session")
def checked_run(demo_settings, made_once):
    """The folder of a search of five trials, four of which are recovered to check its proxies; to read."""
    from autoprune.search.pipeline import search

    settings = {**demo_settings, "budget_gflops": "60%", "proxy_images": 3}
    settings |= {"trials": 5, "confirm": 1, "check_proxies": 4}
    return made_once("checked", lambda folder: search({**settings, "out": folder}))


@pytest.fixture(scope="session")
def sized_run(demo_settings, made_once):
    """The folder of a search among three input sizes, of twelve trials and a repeat; to read."""
    from autoprune.search.pipeline import search

    settings = {**demo_settings, **SIZED, "trials": 12}
    return made_once("sized", lambda folder: search({**settings, "out": folder}))


SIZED = {"input_sizes": (1.0, 0.75, 0.5), "budget_gflops": "60%", "rungs": (0,), "confirm": 1}
"""What makes a search of `demo_settings` one among input sizes."""


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


def ledger_settings(**changes):
    """`LedgerSettings` of short searches without repeats; ``changes`` win."""
    from autoprune.study.trials import LedgerSettings

    settings = {
        "trials": 6,
        "objectives": ("map", "gflops"),
        "rungs": 1,
        "rung_keep": 0.5,
        "sampler": "tpe",
        "seed": 0,
        "confirm": 0,
        "parallel": False,
        "racing": False,
    }
    return LedgerSettings(**{**settings, **changes})


@pytest.fixture
def make_ledger(tmp_path):
    """Ledgers of two rungs and a `FakePlan`, as engines need them; other folders have their own."""
    from autoprune.space.warm_start import WarmStart
    from autoprune.study.ledger import Ledger

    plan = FakePlan(warm_starts=(WarmStart("uniform", 0, (0.5, 0.5)),))

    def make(trials=6, name="study", **settings):
        settings = ledger_settings(**{"trials": trials, "rungs": 2, **settings})
        return Ledger(tmp_path / f"{name}.journal", "s", plan, settings)

    return make


@pytest.fixture
def evaluator():
    """A formula that stands in for an evaluator; a class made here is sent to Ray's workers by value."""

    class Formula:
        """Fails where group `b` keeps more than `fails_above`; counts its evaluations."""

        def __init__(self, fails_above=1000):
            self.fails_above = fails_above
            self.evaluations = 0

        def evaluate(self, widths, rung, state, repeat=0, rivals=()):
            from autoprune.errors import TrainingError

            assert rung == (state or 0), "rungs are climbed one by one, with the state of the one below"
            self.evaluations += 1
            if widths["b"] > self.fails_above:
                raise TrainingError("the loss is not finite at step 3")
            value = 0.5 + 0.1 * rung - 0.05 * repeat - abs(widths["a"] - 80) / 200
            metrics = {"map": value, "gflops": widths["a"] / 10, "evaluations": self.evaluations}
            return metrics, rung + 1

    return Formula


class ChainCost:
    """flops = sum of k_i * w_i * w_(i+1) along a chain that begins at 3 channels and ends at `outputs`."""

    def __init__(
        self, names: Sequence[str], dense: Sequence[int], per_pair: Sequence[int], outputs: int
    ) -> None:
        self.names = tuple(names)
        self.dense = np.array(dense, dtype=np.int64)
        self.per_pair = np.array(per_pair, dtype=np.int64)
        self.outputs = outputs

    def _pairs(self, widths: np.ndarray) -> np.ndarray:
        widths = np.asarray(widths, dtype=np.int64)
        first, last = np.full((*widths.shape[:-1], 1), 3), np.full((*widths.shape[:-1], 1), self.outputs)
        chain = np.concatenate([first, widths, last], axis=-1)
        return chain[..., :-1] * chain[..., 1:]

    def flops(self, widths: np.ndarray) -> np.ndarray:
        return (self._pairs(widths) * self.per_pair).sum(-1)

    def params(self, widths: np.ndarray) -> np.ndarray:
        return (self._pairs(widths) * 9).sum(-1)


def make_chain(
    dense: Sequence[int] = (64, 64, 128, 256),
    units: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    producers: Sequence[Sequence[str]] | None = None,
    outputs: int = 10,
) -> SimpleNamespace:
    names = list(names or (f"body.layer{i}.conv" for i in range(len(dense))))
    units = units or [1] * len(dense)
    producers = producers or [[name] for name in names]
    groups = {}
    for name, width, unit, layers in zip(names, dense, units, producers, strict=True):
        groups[name] = SimpleNamespace(
            name=name,
            width=width,
            unit=unit,
            units=np.arange(width).reshape(-1, unit),
            prunable=True,
            reason=None,
            members=[(f"{layer}.weight", 0, np.arange(width)) for layer in layers],
            roles=["producer"] * len(layers),
        )
    prunable = dict(groups)
    groups["head.out"] = SimpleNamespace(
        name="head.out",
        width=outputs,
        unit=1,
        units=np.arange(outputs)[:, None],
        prunable=False,
        reason="has no consumer: it is an output of the model",
        members=[],
        roles=[],
    )
    per_pair = [100_000 * (i + 1) for i in range(len(dense) + 1)]
    return SimpleNamespace(groups=groups, prunable=prunable, cost=ChainCost(names, dense, per_pair, outputs))


@pytest.fixture(scope="session")
def chain() -> Callable[..., SimpleNamespace]:
    return make_chain


@pytest.fixture(scope="session")
def importance_of() -> Callable[..., dict[str, np.ndarray]]:
    """Positive scores with a heavy tail, different in each group."""

    def make(graph: SimpleNamespace, seed: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        return {
            name: random.exponential(random.uniform(0.1, 3), group.width)
            for name, group in graph.prunable.items()
        }

    return make


SMALL = {"min_size": 128, "max_size": 128, "fpn_channels": 32, "returned_layers": [2, 3], "score_thresh": 0.1}
KINDS = {"fcos_resnet18_fpn": SMALL, "ssdlite320_mobilenet_v3_large": {"score_thresh": 0.1}}


@pytest.fixture(scope="session", params=["retinanet", *sorted(KINDS)])
def one_stage(request):
    """A detector in eval mode that finds dozens of things in noise."""
    import torch
    from torch import nn

    from autoprune.config import ModelSpec
    from autoprune.data import demo_detector
    from autoprune.detectors import build, load_dense

    if request.param == "retinanet":
        spec = demo_detector.MODEL
        arguments = {**spec.arguments, "score_thresh": 0.001}
        return load_dense(spec.name, arguments, weights=str(demo_detector.WEIGHTS))[0]
    model = build(ModelSpec(name=request.param, arguments=KINDS[request.param], num_classes=4)).train()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of the next batch; with fresh ones no signal gets through
    with torch.no_grad():
        model.head(list(model.backbone(torch.rand(4, 3, 320, 320, generator=generator)).values()))
        for parameter in model.head.parameters():
            if parameter.dim() == 4:
                scale = 1.5 * parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()
