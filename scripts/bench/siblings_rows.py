"""The rows of `siblings.py`: what a deployer would ship, each trained for the same number of steps in all."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from parts import Result, changed, once
from search import PLAIN, recovered
from search_methods import METHODS, Case, Choice, Method, one_shot, same_ratio
from siblings_pairs import Pair
from torch import nn

from autoprune.config import Config, ModelSpec, make_config
from autoprune.cost.budget import Budget
from autoprune.data.coco import Split, open_data
from autoprune.data.evaluate import Metrics, evaluate
from autoprune.detectors import build, detector_inputs, load_state, resize_rule, save_state
from autoprune.errors import ConfigError, DataError
from autoprune.graph import analyze
from autoprune.run.results import load_result
from autoprune.space.one_shot import greedy
from autoprune.space.warm_start import WarmStart
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.training import TrainSettings, train

DEVICE = "cpu"


def by_ranking(space: Any, scores: Any, budgets: Sequence[Budget], criterion: str) -> WarmStart:
    """The least important channels of all groups, whatever they cost."""
    return greedy(space, scores, budgets, criterion, per_cost=False)


GLOBAL_TAYLOR = one_shot("global Taylor, autoprune's graph", "taylor", by_ranking)
POLICIES: dict[str, Method] = {
    "uniform": one_shot("uniform ratios, channels by L2", "l2", same_ratio),
    "tp-taylor": METHODS["tp-taylor"],
    "lower": METHODS["lower-size"],
    "greedy-obs": METHODS["greedy-obs"],
    "autoprune": METHODS["ours"],
}


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        label: its name there.
        policy: key of `POLICIES`; ``None`` for a detector that is trained from the start.
        plain: whether it is fine-tuned without our recovery.
    """

    label: str
    policy: str | None = None
    plain: bool = True


ROWS = {
    "larger": Row("larger"),
    "smaller": Row("smaller sibling"),
    "lower-plain": Row("larger at a lower input size", "lower"),
    "lower": Row("the same, autoprune's recovery", "lower", plain=False),
    "uniform-plain": Row("uniform ratios, L2", "uniform"),
    "uniform": Row("the same, autoprune's recovery", "uniform", plain=False),
    "tp-taylor-plain": Row("torch-pruning, global Taylor", "tp-taylor"),
    "tp-taylor": Row("the same, autoprune's recovery", "tp-taylor", plain=False),
    "greedy-obs": Row("autoprune, one shot", "greedy-obs", plain=False),
    "autoprune": Row("autoprune, searched", "autoprune", plain=False),
    "autoprune-plain": Row("the same, fine-tuned plainly", "autoprune"),
}
"""In the order of the table."""


@dataclass(frozen=True)
class Work:
    """All that is done for one pair and one seed.

    Attributes:
        pair: the two detectors.
        given: the command line.
        seed: of everything random.
    """

    pair: Pair
    given: argparse.Namespace
    seed: int

    @property
    def out(self) -> Path:
        """Folder of the pair."""
        folder: Path = self.given.out / self.given.pair
        return folder

    @property
    def folder(self) -> Path:
        """Folder of the seed."""
        return self.out / f"seed-{self.seed}"

    @property
    def pretraining(self) -> int:
        """Steps before something is pruned or shrunk."""
        return int(self.given.steps - self.given.recovery_steps)

    def rate(self, name: str) -> float:
        """The learning rate of a detector's trainings: of those given, the best in short ones of seed 0.

        Args:
            name: ``larger`` or ``smaller``.
        """
        rates = self.given.rates
        if len(rates) == 1:
            return float(rates[0])
        first = replace(self, seed=0)
        scores = {
            rate: once(
                self.out / "rates" / f"{name}-{rate:g}.json",
                partial(first.trained, name, self.given.rate_steps, rate),
            )["val"]
            for rate in rates
        }
        return float(max(scores, key=lambda rate: scores[rate]))

    def train(self, name: str, steps: int) -> Result:
        """A detector after so many steps: from fresh weights at its own rate, the last ones at theirs."""
        rate, last = self.rate(name), self.given.recovery_rate
        if last is None or steps <= self.pretraining:
            return self.trained(name, steps, rate)
        start = self.weights(name, self.pretraining, rate)
        if not start.exists():
            self.trained(name, self.pretraining, rate)
        return self.trained(name, steps - self.pretraining, last, start)

    def trained(self, name: str, steps: int, rate: float, start: Path | None = None) -> Result:
        """Trains a detector from fresh or given weights, keeps its weights, and scores it."""
        classes = self.split("train", None).num_classes
        source = self.pair.larger if name == "larger" else self.pair.smaller
        model = build(
            ModelSpec(name=source, arguments=self.pair.arguments, num_classes=classes), seed=self.seed
        )
        if start is not None:
            model.load_state_dict(load_state(start))
        split = self.split("train", model)
        settings = TrainSettings.from_config(self.config(None), steps=steps, learning_rate=rate)
        file = self.weights(name, steps, rate)
        result = train(model, split, settings, DEVICE, checkpoint=file.with_suffix(".checkpoint"), what=name)
        save_state(result.model, file)
        scores = {**self.score(result.model), **self.costs(result.model)}
        file.with_suffix(".checkpoint").unlink(missing_ok=True)
        return {**scores, "learning_rate": rate, "weights": str(file)}

    def weights(self, name: str, steps: int, rate: float) -> Path:
        """Where a trained detector is kept."""
        return self.folder / "weights" / f"{name}-{steps}-{rate:g}.safetensors"

    def split(self, name: str, model: nn.Module | None) -> Split:
        """Images at a detector's input size."""
        return open_data(Path(self.given.data), name, None if model is None else resize_rule(model))

    def score(self, model: nn.Module) -> Result:
        """MAP on validation and test images, and that on resamples of them."""
        metrics: dict[str, Metrics] = {}
        for name in ("val", "test"):
            with suppress(DataError):
                metrics[name] = evaluate(model, self.split(name, model), DEVICE, error=True)
        maps: Result = {"test": None, **{name: metric.map for name, metric in metrics.items()}}
        return {**maps, "bootstrap": {name: metric.bootstrap for name, metric in metrics.items()}}

    def costs(self, model: nn.Module) -> Result:
        """GFLOPs and millions of parameters of a dense detector, at the size of most images."""
        graph = analyze(model, detector_inputs(self.split("val", model).most_common_size))
        return {"gflops": graph.gflops(), "mparams": graph.mparams()}

    @cached_property
    def budget(self) -> float:
        """GFLOPs of the smaller detector, the bound of all others."""

        def work() -> Result:
            classes = self.split("train", None).num_classes
            spec = ModelSpec(name=self.pair.smaller, arguments=self.pair.arguments, num_classes=classes)
            return self.costs(build(spec).eval())

        return float(once(self.out / "smaller-costs.json", work)["gflops"])

    def config(self, weights: str | None) -> Config:
        """Settings of the pruning, with the default recovery of its length."""
        return make_config(
            model=self.pair.larger,
            model_arguments=dict(self.pair.arguments),
            weights=weights,
            data=self.given.data,
            seed=self.seed,
            steps=self.given.recovery_steps,
            trials=self.given.trials,
            rungs=(0, self.given.rung),
            importance_images=self.given.importance_images,
            precision=self.given.precision,
            device=DEVICE,
            threads=1,
        )

    @cached_property
    def task(self) -> PruningTask:
        """The larger detector after its pre-training, which is pruned."""
        weights = self.weights("larger", self.pretraining, self.rate("larger"))
        config = changed(self.config(str(weights)), budget_gflops=f"{self.budget:.6f}")
        return load_task(config)

    def shipped(self, name: str) -> Result:
        """What a row of the table ends with."""
        row = ROWS[name]
        if row.policy is None:
            return self.train(name, self.given.steps)
        given = argparse.Namespace(**{**vars(self.given), "out": self.folder})
        case = Case(self.task, given, row.policy)
        policy = once(self.folder / f"policy-{row.policy}.json", partial(choose, case))
        if "failed" in policy:
            return policy
        choice = Choice(policy["keep"], policy["pixels"])
        recovery = {**PLAIN, "criterion": "l2"} if row.plain else {}  # a criterion that costs no time
        if given.recovery_rate is not None:
            recovery["learning_rate"] = given.recovery_rate
        task = replace(self.task, config=changed(self.task.config, **recovery))
        dense = partial(evaluate, self.task.model, self.task.val, DEVICE)
        result = recovered(Case(task, given, name), choice, dense)
        return {**result, "policy_s": policy["policy_s"], "notes": policy["notes"]}


def choose(case: Case) -> Result:
    """A method's policy and what it took, or why there is none.

    Where torch-pruning can't prune a detector, its ranking is repeated on autoprune's graph.
    """
    notes: Result = {}
    try:
        choice = POLICIES[case.method].choose(case)
    except (SystemExit, ConfigError) as error:
        if case.method == "lower":
            return {"failed": str(error)}
        if case.method != "tp-taylor":
            raise
        notes["failed"] = str(error)
        choice = GLOBAL_TAYLOR.choose(case)
    if case.method == "autoprune":
        notes["search_steps"] = search_steps(case)
    keep = {group: list(map(int, kept)) for group, kept in choice.keep.items()}
    notes = {**choice.notes, **notes}
    return {"keep": keep, "pixels": choice.pixels, "notes": notes, "policy_s": choice.seconds}


def search_steps(case: Case) -> int:
    """Training steps that all proxies of a search took."""
    out = case.given.out / "searches" / case.name
    records = load_result(out).records
    reached = [len(record.rungs) for record in records if record.same_as is None and record.rungs]
    return sum(case.config.rungs[rungs - 1] for rungs in reached)
