"""What a trial does: prune, reconstruct, recover for a few steps, measure; one rung at a time."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import nn

from autoprune.cost.budget import figures, parse_budget
from autoprune.data.detections import detect
from autoprune.data.evaluate import Metrics, evaluate
from autoprune.data.evaluators import Detections
from autoprune.data.racing import RaceOrder
from autoprune.data.rivals import MAPS, RACED, Rival, encode_maps, rival_of
from autoprune.errors import BudgetError, TrainingError, out_of_memory
from autoprune.graph import prune
from autoprune.importance import Importance
from autoprune.latency.networks import measure_networks
from autoprune.seeding import seed as derive
from autoprune.space.input_size import pixels_of
from autoprune.space.space import Space
from autoprune.task.learning_rate import recovery_rate
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import PruningTask
from autoprune.task.race import Raced, race
from autoprune.task.training_start import make_reconstructor, make_teacher, reinitialize
from autoprune.training import Reconstructor, TrainSettings, train

Keep = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TrialState:
    """What a trial continues from at its next rung.

    Attributes:
        model: the pruned detector, as the last rung left it.
        scores: its scores on the images of trials; ``None`` where a race ended before the last of them.
        maps: its mAP on resampled images, encoded, where it was estimated.
        latency_ms: where it is measured; training does not change it.
    """

    model: nn.Module
    scores: Metrics | None = None
    maps: str | None = None
    latency_ms: float | None = None


class PolicyEvaluator:
    """Evaluates policies of one dense detector; the same policy and repeat give the same numbers every time.

    Args:
        task: detector and data.
        space: says which channels a width keeps; resolved with importance.
        importance: {group: [width]}, scores that weight the channels in the distillation.
        dense_ms: latency of the dense detector that fractions of it refer to; ``None`` measures it.
        dense_map: mAP of the dense detector on the images of trials; ``None`` measures it where it is needed.

    Raises:
        BudgetError: the budget on the latency is no number, or not below the dense detector's.
    """

    def __init__(
        self,
        task: PruningTask,
        space: Space,
        importance: Importance,
        dense_ms: float | None = None,
        dense_map: float | None = None,
    ) -> None:
        self.task, self.space, self.importance = task, space, importance
        self.dense_ms, self.dense_map = dense_ms, dense_map
        rungs = task.config.rungs
        self._probes: dict[int | None, Probe] = {}  # by input size
        self._smaller_maps: dict[int | None, float] = {}  # of the dense detector at smaller input sizes
        self._reconstructors: dict[int | None, Reconstructor] = {}
        config = task.config
        order = RaceOrder.make(task.proxy_images, config.batch_size, config.seed)
        self._order = order if config.racing else None
        self._latency_limit = self._read_latency_limit()
        self._steps = [rungs[0], *(high - low for low, high in pairwise(rungs))]

    def keep(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The kept channels of each pruned group, rising: the most important ones of its width."""
        return self.space.keep(self.space.as_array(widths))

    def evaluate(
        self,
        widths: Mapping[str, int],
        rung: int,
        state: TrialState | None,
        repeat: int = 0,
        rivals: Sequence[Rival] = (),
    ) -> tuple[dict[str, float | str], TrialState]:
        """Takes a policy to a rung; see `Evaluator`.

        A trial that is known to be worse than one of its ``rivals`` that costs no more is not evaluated to
        the end (`race`): its metrics then hold `RACED`. Where the training of a rung makes the
        detector worse than at the rung before, that one is kept, as in a recovery.
        """
        task, config, start = self.task.at(pixels_of(widths)), self.task.config, time.perf_counter()
        keep = self.keep(widths)
        with out_of_memory(f"evaluating at rung {rung}", "lower batch_size"):
            if state is None:
                model, before = prune(task.model, task.graph, keep), None
                latency_ms = self._check_measured_latency(model) if self.measures_latency else None
            else:
                model, before, latency_ms = state.model, state.scores, state.latency_ms
            pruned = time.perf_counter()
            model = self._recover(task, model, keep, rung, repeat, before)
            recovered = time.perf_counter()
            costs = task.costs(keep)
            if latency_ms is not None:
                costs["latency_ms"] = latency_ms
            raced = self._race(task, model, None if repeat else rival_of(costs, rivals), before)
            if state is not None and before is not None and before.map > raced.map:
                model, raced = state.model, Raced(before.map, before.images, before, state.maps)
            scores: dict[str, float | str] = {"map": raced.map}
            if raced.scores is None:
                scores[RACED] = raced.images
            else:
                scores["map50"] = raced.scores.map50
                if raced.maps is not None:
                    scores[MAPS] = raced.maps
                if rung + 1 < len(config.rungs):  # no trial is promoted from the top
                    scores |= self._distances(task, model, keep)
            evaluated = time.perf_counter()
        metrics = {**scores, **costs}
        metrics |= {"training_s": recovered - pruned, "evaluation_s": evaluated - recovered}
        metrics["other_s"] = time.perf_counter() - evaluated + pruned - start
        return metrics, TrialState(model, raced.scores, raced.maps, latency_ms)

    def _race(
        self, task: PruningTask, model: nn.Module, rival: Rival | None, before: Metrics | None
    ) -> Raced:
        """The evaluation of a trial, against a rival that what it was before does not beat already."""
        if self._order is None:
            scores = self._scores(task, model, error=True)
            maps = encode_maps(np.array([[scores.map, *scores.bootstrap]])) if scores.bootstrap else None
            return Raced(scores.map, scores.images, scores, maps)
        if rival is not None and before is not None and before.map >= rival.map:
            rival = None

        def detections_in(images: Sequence[int]) -> Detections:
            return detect(model, task.val, images, task.device, task.config.batch_size, self.task.amp)

        return race(detections_in, task.val, self._order, rival)

    @property
    def measures_latency(self) -> bool:
        """Whether latency is an objective or has a budget."""
        config = self.task.config
        return "latency_ms" in config.objectives or config.budget_latency_ms is not None

    def latency_ms(self, model: nn.Module) -> float:
        """Median time of the network on one image, at the input size of ``model``, in the run's runtime."""
        (latency,) = measure_networks([model], self.task.latency_setup)
        return latency.median_ms

    def check_latency(self) -> None:
        """Refuses a budget on the latency that not even the smallest policy of the space meets.

        Raises:
            BudgetError: says the smallest latency.
        """
        if self._latency_limit is None:
            return
        smallest = self.task.at(min(self.task.smaller, default=None))
        latency = self.latency_ms(prune(smallest.model, smallest.graph, self.space.keep(self.space.lowest)))
        if latency > self._latency_limit:
            raise BudgetError(
                f"budget_latency_ms: {figures(self._latency_limit)} ms can't be reached, the smallest of "
                f"the space takes {figures(latency)} ms here; raise the budget, or max_ratio in the space"
            )

    def _check_measured_latency(self, model: nn.Module) -> float:
        """Latency of a pruned detector in ms; refuses one above the budget before it is trained."""
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

    def _distances(self, task: PruningTask, model: nn.Module, keep: Keep) -> dict[str, float]:
        """The loss of a pruned detector; at the own input size also its distance from the dense detector."""
        if (probe := self._probes.get(task.pixels)) is None:
            probe = self._probes[task.pixels] = Probe(task)
        if task is self.task:
            return probe(model, keep)
        # a distance from the dense detector at another size would not compare with those at its own
        loss = probe.loss(model)
        return {} if loss is None else {"loss": loss}

    def _recover(
        self, task: PruningTask, model: nn.Module, keep: Keep, rung: int, repeat: int, before: Metrics | None
    ) -> nn.Module:
        """Reconstructs or recalibrates at the bottom rung, then trains for the steps of this rung.

        ``before`` are the scores of the model, where it has any.
        """
        config = self.task.config
        # The seed depends on the rung and not on the trial, so that trials differ by their policies alone.
        seed = derive(config.seed, "proxy", rung, *([repeat] if repeat else []))
        if rung == 0:
            model = reinitialize(task, model, keep, seed, None if repeat else self._reconstructor(task, seed))
        if self._steps[rung] == 0:
            return model
        settings = TrainSettings.from_config(
            config,
            steps=self._steps[rung],
            seed=seed,
            learning_rate=self._learning_rate(task, model, before),
            augment=False,  # trials compare policies; in so few steps it costs more than it gives
        )
        teacher = make_teacher(task, keep, self.importance)
        return train(model, task.train, settings, task.device, teacher, what="recovery of a trial").model

    def _reconstructor(self, task: PruningTask, seed: int) -> Reconstructor | None:
        """That of a task, for all trials: their images are the same; ``None`` without reconstruction."""
        if task.config.reconstruct_images and task.pixels not in self._reconstructors:
            self._reconstructors[task.pixels] = make_reconstructor(task, seed)
        return self._reconstructors.get(task.pixels)

    def _learning_rate(self, task: PruningTask, model: nn.Module, before: Metrics | None) -> float:
        """The configured rate, or the one that follows from the mAP before the training.

        What was cut counts from the dense detector at the input size of ``task``.
        """
        if self.task.config.learning_rate is not None:
            return self.task.config.learning_rate
        scores = before or self._scores(task, model)
        return recovery_rate(scores.map, self._dense_map_of(task), self._dense_map_of(self.task))

    def _dense_map_of(self, task: PruningTask) -> float:
        """MAP of the dense detector at the input size of a task, measured once."""
        if task is self.task:
            if self.dense_map is None:
                self.dense_map = self._scores(task, task.model).map
            return self.dense_map
        if task.pixels not in self._smaller_maps:
            self._smaller_maps[task.pixels] = self._scores(task, task.model).map
        return self._smaller_maps[task.pixels]

    def _scores(self, task: PruningTask, model: nn.Module, error: bool = False) -> Metrics:
        """The scores on the images that trials are measured on."""
        config = self.task.config
        return evaluate(
            model,
            task.val,
            task.device,
            batch_size=config.batch_size,
            images=config.proxy_images,
            amp=self.task.amp,
            error=error,
        )
