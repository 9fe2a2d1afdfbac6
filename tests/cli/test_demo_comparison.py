"""The demo compares the best trial of each kind at each budget, and measures files, not memories of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.cli import demo_comparison
from autoprune.cli.demo_comparison import Compared, choose, compare, save_untrained
from autoprune.config import make_config
from autoprune.data import demo_detector
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import build, load_state
from autoprune.export import load
from autoprune.run.results import load_result
from autoprune.search.pipeline import search
from autoprune.study.records import Record


def record(number: int, origin: str, map: float, budget: float | None = 0.3, **attributes: Any) -> Record:
    state = attributes.pop("state", "complete")
    return Record(number, state, origin, budget, {}, rungs=({"map": map},), **attributes)


def test_the_best_trial_of_each_kind_and_budget_is_compared_and_the_best_of_all_recovered() -> None:
    records = [
        record(0, "uniform", 0.50),
        record(1, "uniform", 0.40, 0.2),
        record(2, "knapsack joint", 0.55),
        record(3, "global joint", 0.57),
        record(4, "knapsack joint", 0.47, 0.2),
        record(5, "sampler", 0.56),
        record(6, "sampler", 0.54),
        record(7, "sampler", 0.60, same_as=5),
        record(8, "sampler", 0.99, state="failed"),
        record(9, "sampler", 0.99, None),
    ]
    result: Any = SimpleNamespace(records=records)
    assert choose(result) == [
        Compared(0, "uniform", "uniform", 0.3, is_best=False),
        Compared(3, "one-shot", "global joint", 0.3, is_best=True),
        Compared(5, "searched", "searched", 0.3, is_best=False),
        Compared(1, "uniform", "uniform", 0.2, is_best=False),
        Compared(4, "one-shot", "knapsack joint", 0.2, is_best=True),
    ]
    assert choose(SimpleNamespace(records=[])) == []  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(demo_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search whose trials are measured without training."""
    out = tmp_path_factory.mktemp("runs") / "run"
    data = make_shapes(tmp_path_factory.mktemp("data"), demo_detector.DATA_SEED, 8, 6, test=5, size=128)
    settings = {**demo_settings, "rungs": (0,), "reconstruct_images": 2, "data": data}
    search({**settings, "trials": 2, "out": out})
    return out


@pytest.mark.slow
def test_untrained_files_are_the_detectors_that_the_trials_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {record.number: record for record in load_result(run).records}
    folders = save_untrained(run, list(records))
    val = open_data(make_data(run), "val")
    for number, folder in folders.items():
        assert evaluate(load(folder), val).map == pytest.approx(records[number].metrics["map"], abs=1e-9)
    before = {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in folders.values()}
    monkeypatch.setattr("autoprune.task.pruning_task.load_task", None)  # nothing is loaded a second time
    assert save_untrained(run, list(records)) == folders
    assert {folder: (folder / "model.safetensors").stat().st_mtime_ns for folder in before} == before


def make_data(run: Path) -> Path:
    from autoprune.run.directory import RunDirectory

    data = RunDirectory(run).config().data
    assert isinstance(data, Path)
    return data


@pytest.mark.slow
def test_everything_is_measured_on_the_test_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_comparison, "LATENCY_PASSES", 1)
    folders = save_untrained(run, [0])
    model = demo_detector.MODEL
    config = make_config(
        model=model.name, model_arguments=model.arguments, weights=str(demo_detector.WEIGHTS),
        data=make_data(run), out=run, device="cpu", threads=1,
    )  # fmt: skip
    comparison = compare(config, folders, folders)
    test, val = (open_data(make_data(run), split) for split in ("test", "val"))
    assert comparison.untrained[0].scores.map == pytest.approx(evaluate(load(folders[0]), test).map, abs=1e-9)
    assert comparison.recovered[0].scores == comparison.untrained[0].scores
    assert len(comparison.dense.scores.bootstrap) == len(comparison.sibling.scores.bootstrap) > 1
    sibling = build(demo_detector.SIBLING).eval()
    sibling.load_state_dict(load_state(demo_detector.SIBLING_WEIGHTS))
    assert comparison.sibling.scores.map == pytest.approx(evaluate(sibling, test).map, abs=1e-9)
    assert comparison.sibling_val_map == pytest.approx(evaluate(sibling, val).map, abs=1e-9)
    assert comparison.sibling.gflops == pytest.approx(0.201, abs=5e-4)
    assert comparison.sibling.gflops < 0.35 * comparison.dense.gflops
