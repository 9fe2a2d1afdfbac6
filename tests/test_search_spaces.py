"""Every ready search space against the graph of its detector."""

import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.config import ModelSpec
from autoprune.cost.budget import Budget
from autoprune.cost.counts import CostModel
from autoprune.detectors import build, detector_inputs
from autoprune.fields import is_vendor
from autoprune.graph import analyze
from autoprune.space.file import SpaceFile, ready_space
from autoprune.space.one_shot import warm_starts, widths_of
from autoprune.space.resolve import resolve

FOLDER = Path(__file__).parent.parent / "search_spaces"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_documented_ones_exist() -> None:
    assert {path.stem for path in FILES} >= {
        "retinanet_resnet50_fpn_coco",
        "retinanet_resnet50_fpn_v2_coco",
        "retinanet_resnet18_fpn",
        "fcos_resnet50_fpn_coco",
        "ultralytics_yolo11n",
        "ultralytics_yolo11s",
        "ultralytics_yolo26n",
        "transformers_rtdetr_r18vd",
        "transformers_rtdetr_r50vd",
        "transformers_dfine-small-coco",
        "transformers_rf-detr-nano",
    }


def marked(path: Path) -> Any:
    """The file as a parameter; to analyze a detector of Transformers takes a minute."""
    marks = [pytest.mark.slow] if path.stem.startswith("transformers_") else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [marked(path) for path in FILES])
def test_a_ready_space_fits_its_detector(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SpaceFile.load(path)
    if is_vendor(file.model):
        pytest.importorskip(file.model.partition(":")[0])
    assert ready_space(file.model) == path
    # At a quarter of the input size: fractions of the GFLOPs are the same, but the pass takes a sixteenth.
    size = (file.input_size[0] // 4, file.input_size[1] // 4)
    model = small(file, size)
    graph = analyze(model, detector_inputs(size, torch.device("cpu")))
    random = np.random.default_rng(0)
    importance = {name: random.exponential(1, group.width) for name, group in graph.prunable.items()}
    space = resolve(file, graph, importance)
    for rule in file.groups:
        assert fnmatch.filter(graph.prunable, rule.match), rule.match
    assert set(np.array(space.names)[space.variable_of >= 0]) == set(graph.prunable)
    counts = [
        len(resolve(file.model_copy(update={"granularity": g}), graph).variables) for g in GRANULARITIES
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[2] < counts[0] == len(graph.prunable)

    calls, flops = [], CostModel.flops

    def count(cost: CostModel, widths: np.ndarray) -> np.ndarray:
        calls.append(np.shape(widths))
        return flops(cost, widths)

    monkeypatch.setattr(CostModel, "flops", count)
    dense = float(space.cost("gflops", space.dense))
    assert space.cost("gflops", space.lowest) < 0.25 * dense
    for fraction in (0.5, 0.33):
        budgets = [Budget("gflops", fraction * dense)]
        starts = warm_starts(space, {"taylor": importance, "fisher": importance}, budgets)
        assert starts
        for start in starts:
            assert 0.995 * fraction < graph.gflops(start.widths) / dense <= fraction
            widths = widths_of(space, start)
            assert space.project_to_budget(np.array(start.fractions), budgets).tolist() == widths.tolist()
            kept = space.keep(widths)
            assert {name: len(channels) for name, channels in kept.items()} == {
                name: int(width)
                for name, width, whole in zip(space.names, widths, space.dense, strict=True)
                if width < whole
            }
        calls.clear()
        for _ in range(10):
            widths = space.project_to_budget(random.random(len(space.variables)), budgets)
            assert 0.98 < space.budget_usage(widths, budgets) <= 1
        assert len(calls) < 10 * 50, "a projection asks the cost model for little"


def small(file: SpaceFile, size: tuple[int, int]) -> nn.Module:
    """The detector of a file, which resizes to that size; Transformers' with as much fewer queries."""
    arguments = file.model_arguments
    if is_vendor(file.model):
        pytest.importorskip(file.model.partition(":")[0])
    if "config" in arguments:
        queries = arguments["config"].get("num_queries", 300) // 16
        config = {**arguments["config"], "num_queries": queries}
        arguments = {**arguments, "config": config, "size": list(size)}
    elif not is_vendor(file.model):
        arguments = {**arguments, "min_size": min(size), "max_size": max(size)}
    return build(ModelSpec(name=file.model, arguments=arguments, num_classes=91))


GRANULARITIES = ("layer", "block", "stage")
