"""The plan of a run: its space at each input size, with its budgets, warm starts and latency models."""

from collections.abc import Mapping
from dataclasses import replace

from autoprune.config import Config
from autoprune.importance import Importance
from autoprune.latency.fit import fit_model, on_budget, prediction_error
from autoprune.latency.model import LatencyModel
from autoprune.progress import say
from autoprune.run.directory import RunDirectory
from autoprune.run.results import SearchResult
from autoprune.search.plan import SpacePlan, identify, read_bounds
from autoprune.search.sized_space import SizedSpace, refuse_out_of_reach
from autoprune.space.derive import widest_space
from autoprune.space.file import SpaceFile
from autoprune.space.resolve import resolve
from autoprune.space.space import Space
from autoprune.task.pruning_task import PruningTask
from autoprune.task.size_scores import size_importance

LatencyModels = dict[int | None, LatencyModel]
"""By the pixels of the shorter side, the detector's own size first."""


def check_budgets(config: Config, file: SpaceFile | None, task: PruningTask) -> None:
    """Refuses budgets that are no numbers or out of reach, before the importance is computed.

    Raises:
        BudgetError: see `read_bounds` and `Space.check`.
    """
    bounds = tuple(read_bounds(config, task.graph))
    if file is None and not config.empty_blocks:  # no space that is derived reaches further
        file = widest_space(task.spec, task.input_size)
    if file is not None:
        tasks = (task, *task.smaller.values())
        refuse_out_of_reach([SizedSpace(resolve(file, each.graph), bounds) for each in tasks])


def make_plan(
    task: PruningTask, file: SpaceFile, scores: Mapping[str, Importance], run: RunDirectory
) -> tuple[SpacePlan, LatencyModels]:
    """The space with its budgets and warm starts; with a budget on the latency also the models of it.

    Raises:
        BudgetError: no policy of the space meets a budget.
        RunError: the latency model of the run is of another device.
    """
    config, graph = task.config, task.graph
    bounds = read_bounds(config, graph)
    ranked_by, ranking = next(iter(scores.items()))
    space = resolve(file, graph, ranking)
    latency: LatencyModels = {}
    sizes = [SizedSpace(space, tuple(bounds), task.pixels)]
    removed = size_importance(task, space, ranked_by, run.importance_file)
    sizes += [
        SizedSpace(replace(space, graph=each.graph), tuple(bounds), pixels, removed[pixels])
        for pixels, each in task.smaller.items()
    ]
    if config.budget_latency_ms is not None:
        latency = _fit_latency(task, space, run)
        sizes = [_with_latency(size, latency, config.budget_latency_ms) for size in sizes]
    own, *smaller = sizes
    identity = identify(task.weights_sha256, file, own.bounds, task.data_identity, list(task.smaller))
    criteria = scores if config.warm_starts else {}
    plan = SpacePlan(own.space, own.bounds, criteria, identity, ranked_by, smaller, task.pixels)
    if (coarseness := plan.coarseness()) is not None:
        say(coarseness)
    return plan, latency


def _fit_latency(task: PruningTask, space: Space, run: RunDirectory) -> LatencyModels:
    """The latency models at the detector's own input size and at the smaller ones.

    Raises:
        RunError: the latency model of the run is of another device.
    """
    begun = run.config_file.exists()
    models: LatencyModels = {
        task.pixels: fit_model(task.model, task.graph, space, task.latency_setup, run.latency_file, begun)
    }
    for pixels, each in task.smaller.items():
        sized, file = replace(space, graph=each.graph), run.latency_file_at(pixels)
        models[pixels] = fit_model(each.model, each.graph, sized, each.latency_setup, file, begun)
    return models


def _with_latency(size: SizedSpace, latency: LatencyModels, text: str) -> SizedSpace:
    """A space that knows its latency, and has the budget on it; the dense latency is that at the own size.

    Raises:
        BudgetError: the budget is no number, not below the dense detector's latency, or out of reach.
    """
    dense_ms = next(iter(latency.values())).dense_ms
    space, budget = on_budget(latency[size.pixels], size.space, text, dense_ms if len(latency) > 1 else None)
    return replace(size, space=space, bounds=tuple((*bound, budget) for bound in size.bounds))


def say_prediction_error(latency: LatencyModel, result: SearchResult, pixels: int | None) -> None:
    """Says how far a latency model was from what trials measured.

    Args:
        latency: what predicted.
        result: of the search.
        pixels: the model's input size, where there are several.
    """
    measured = [
        (record.widths, record.metrics["latency_ms"])
        for record in result.records
        if record.widths and "latency_ms" in record.metrics and pixels in (None, record.pixels)
    ]
    if (line := prediction_error(latency, measured)) is not None:
        say(line if pixels is None else f"{line}, at {pixels} pixels")
