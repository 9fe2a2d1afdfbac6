"""What a trial does: prune, renew statistics, recover for a few steps, measure; one rung at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import nn

from autoprune.cost.budget import figures, parse_budget
from autoprune.data.evaluate import Metrics, evaluate
from autoprune.errors import BudgetError, TrainingError
from autoprune.graph import prune
from autoprune.importance import Importance
from autoprune.latency.fit import measure_networks
from autoprune.seeding import seed as derive
from autoprune.study.trials import Keep
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import PruningTask
from autoprune.training import TrainSettings, train


class PolicyEvaluator:
    """Evaluates policies of one dense detector; the same policy and repeat give the same numbers every time.

    Args:
        task: detector and data.
        importance: scores that weight the channels in the distillation.
        dense_ms: latency of the dense detector that fractions of it are taken of; ``None`` measures it.

    Raises:
        BudgetError: the budget on the latency is no number, or not below the dense detector's.
    """

    def __init__(self, task: PruningTask, importance: Importance, dense_ms: float | None = None) -> None:
        """Keeps what is shared by all trials."""
        self.task, self.importance, self.dense_ms = task, importance, dense_ms
        config = task.config
        self._probe = Probe(task)
        self._measured: WeakKeyDictionary[nn.Module, Metrics] = WeakKeyDictionary()  # what rungs left
        self._latency_limit = self._read_latency_limit()
        self._steps = [config.rungs[0], *(high - low for low, high in pairwise(config.rungs))]

    def evaluate(
        self, keep: Keep, rung: int, state: nn.Module | None, repeat: int = 0
    ) -> tuple[dict[str, float], nn.Module]:
        """Takes a policy to a rung; see `Evaluator`.

        A rung whose training makes the detector worse leaves it as it was, as a recovery does.
        """
        task, config, start = self.task, self.task.config, time.perf_counter()
        with _out_of_memory(f"evaluating at rung {rung}"):
            model = self._prune(keep) if state is None else state
            latency = {"latency_ms": self._timed(model)} if self.measures_latency else {}
            pruned = time.perf_counter()
            model = self._recover(model, keep, rung, repeat)
            recovered = time.perf_counter()
            found = evaluate(
                model,
                task.val,
                task.device,
                batch_size=config.batch_size,
                images=config.proxy_images,
            )
            if state is not None and (before := self._measured.get(state)) and before.map > found.map:
                model, found = state, before
            self._measured[model] = found
            top = rung + 1 == len(config.rungs)  # no trial is stopped there
            known = {} if top else self._probe(model, keep)
            evaluated = time.perf_counter()
        metrics = {"map": found.map, "map50": found.map50, **known, **task.costs(keep), **latency}
        metrics |= {"training_s": recovered - pruned, "evaluation_s": evaluated - recovered}
        metrics["other_s"] = time.perf_counter() - evaluated + pruned - start
        return metrics, model

    @property
    def measures_latency(self) -> bool:
        """Whether latency is asked for."""
        config = self.task.config
        return "latency_ms" in config.objectives or config.budget_latency_ms is not None

    def latency_ms(self, model: nn.Module) -> float:
        """Median time of the network on one image at the input size, in the run's runtime."""
        task, config = self.task, self.task.config
        (found,) = measure_networks(
            [model], task.input_size, config.latency_runtime, task.device, config.threads
        )
        return found.median_ms

    def check_latency(self, smallest: Keep) -> None:
        """Refuses a budget on the latency that not even the smallest policy meets.

        Raises:
            BudgetError: says the smallest latency.
        """
        if self._latency_limit is None:
            return
        latency = self.latency_ms(self._prune(smallest))
        if latency > self._latency_limit:
            raise BudgetError(
                f"budget_latency_ms: {figures(self._latency_limit)} ms can't be reached, the smallest of "
                f"the space takes {figures(latency)} ms here; raise the budget, or max_ratio in the space"
            )

    def _timed(self, model: nn.Module) -> float:
        """Latency of a pruned detector; refuses one above the budget before any work is spent on it."""
        latency = self.latency_ms(model)
        if self._latency_limit is not None and latency > self._latency_limit:
            raise TrainingError(
                f"{latency:.2f} ms is above budget_latency_ms, {self._latency_limit:.2f} ms, by measurement; "
                "an idle machine measures better"
            )
        return latency

    def _read_latency_limit(self) -> float | None:
        text = self.task.config.budget_latency_ms
        if text is None:
            return None
        dense_ms = self.latency_ms(self.task.model) if self.dense_ms is None else self.dense_ms
        return parse_budget(text, "latency_ms", dense_ms).limit

    def _prune(self, keep: Keep) -> nn.Module:
        return prune(self.task.model, self.task.graph, keep)

    def _recover(self, model: nn.Module, keep: Keep, rung: int, repeat: int) -> nn.Module:
        """Renews weights and statistics at the bottom rung, then trains as long as this rung asks."""
        task, config = self.task, self.task.config
        # The seed knows the rung and not the trial, so that trials differ by their policies alone.
        seed = derive(config.seed, "proxy", rung, *([repeat] if repeat else []))
        if rung == 0:
            model = task.reinitialize(model, keep, seed)
        if self._steps[rung] == 0:
            return model
        settings = replace(TrainSettings.from_config(config, self._steps[rung]), seed=seed)
        teacher = task.teacher(keep, self.importance)
        return train(model, task.train, settings, task.device, teacher, what="trial").model


@contextmanager
def _out_of_memory(doing: str) -> Iterator[None]:
    """Turns an allocation that failed into the trial's own failure."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TrainingError(f"out of memory {doing}; lower batch_size") from error
