"""The methods of `search.py`: each gives one policy for a budget and a seed."""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from parts import changed, once

from autoprune.config import Config
from autoprune.cost.budget import Budget, parse_budget
from autoprune.importance import CURVES, Importance
from autoprune.search.curves import score_curves
from autoprune.search.pipeline import search
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.one_shot import greedy, uniform, widths_of
from autoprune.space.render import save_space
from autoprune.space.resolve import resolve
from autoprune.space.warm_start import WarmStart
from autoprune.task.input_sizes import STRIDE
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.task.scoring import score_channels

Keep = Mapping[str, Sequence[int]]

LARGEST_RATIO = 0.9  # of every group, for the methods that have no bounds of their own
CURVES_OVER = "obs"  # the criterion in whose order channels go while curves are measured
INPUT_SIZES = (1.0, 0.75, 0.5)  # for the searches that may choose one
PEERS = Path(__file__).with_name("search_peers.py")


class Choice(NamedTuple):
    """A method's policy.

    Attributes:
        keep: {group: kept channels} of each pruned group.
        pixels: shorter side of its input size; ``None`` for the detector's own.
        notes: what else to write down.
        seconds: what it took, where that is not what this process just spent (a search may be resumed).
    """

    keep: Keep
    pixels: int | None = None
    notes: Mapping[str, Any] = {}
    seconds: float | None = None


@dataclass(frozen=True)
class Case:
    """One method's task: a budget and a seed.

    Attributes:
        task: dense detector and data, with the settings of this seed and budget.
        given: the command line.
        method: key of `METHODS`.
    """

    task: PruningTask
    given: argparse.Namespace
    method: str

    @property
    def config(self) -> Config:
        """The settings of this seed and budget."""
        return self.task.config

    @property
    def name(self) -> str:
        """Names the case in files."""
        return f"{self.method}-{self.config.budget_gflops[0].replace('%', 'pc')}-{self.config.seed}"

    @cached_property
    def budget(self) -> Budget:
        """The bound on the GFLOPs."""
        return parse_budget(self.config.budget_gflops[0], "gflops", self.task.graph.gflops())

    def scores(self, criterion: str) -> Importance:
        """Importance by a criterion, or that made of sensitivity curves; computed once a seed."""
        file: Path = self.given.out / f"importance-{self.config.seed}-{criterion}.safetensors"
        over = self.scores(CURVES_OVER) if criterion == CURVES else None
        started = time.perf_counter()
        if over is None:
            scores = score_channels(self.task, criterion, file)
        else:
            scores = score_curves(self.task, over, file.with_suffix(".json"), self.config.empty_blocks)
        once(self._seconds_file(criterion), lambda: {"seconds": time.perf_counter() - started})
        return scores

    def scoring_s(self, criterion: str) -> float:
        """Seconds that `scores` took when it computed them."""
        self.scores(criterion)
        return float(json.loads(self._seconds_file(criterion).read_text(encoding="utf-8"))["seconds"])

    def _seconds_file(self, criterion: str) -> Path:
        file: Path = self.given.out / f"scoring-{self.config.seed}-{criterion}.json"
        return file

    def wide_space(self, criterion: str) -> SpaceFile:
        """A space that lets every group go as far as any other."""
        return SpaceFile(
            model=self.config.model,
            model_arguments=self.config.model_arguments,
            input_size=self.task.input_size,
            criterion=CURVES_OVER if criterion == CURVES else criterion,
            groups=(GroupRule(match="*", max_ratio=LARGEST_RATIO),),
        )

    def at(self, pixels: int | None) -> PruningTask:
        """The task at an input size that has this shorter side."""
        own = self.task.pixels
        if pixels is None or own is None or pixels == own:
            return self.task
        sizes = changed(self.config, input_sizes=(1.0, pixels / own))
        return replace(load_task(sizes).at(pixels), config=self.config)


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        label: its name there.
        choose: finds the policy.
        criteria: those whose scores it needs; the time to compute them is part of what it costs.
    """

    label: str
    choose: Callable[[Case], Choice]
    criteria: tuple[str, ...] = field(default=(), kw_only=True)


def one_shot(label: str, criterion: str, start: Callable[..., WarmStart]) -> Method:
    """The policy that a one-shot method ends with, by one criterion."""

    def choose(case: Case) -> Choice:
        scores = case.scores(criterion)
        space = resolve(case.wide_space(criterion), case.task.graph, scores)
        return Choice(space.keep(widths_of(space, start(space, scores, [case.budget], criterion))))

    return Method(label, choose, criteria=(CURVES_OVER, CURVES) if criterion == CURVES else (criterion,))


def same_ratio(space: Any, _scores: Any, budgets: Sequence[Budget], _criterion: str) -> WarmStart:
    """The uniform policy, with the arguments of `greedy`."""
    return uniform(space, budgets)


def by_search(label: str, **changes: Any) -> Method:
    """`autoprune search`, but for some settings."""
    return Method(label, lambda case: run_search(case, **changes))


def run_search(case: Case, **changes: Any) -> Choice:
    """The best policy that a search finds."""
    out = case.given.out / "searches" / case.name
    result = search(changed(case.config, **changes, out=out))
    if (best := result.best) is None:
        raise SystemExit(f"{out}: no trial was completed; `autoprune front {out}` says why")
    notes = {"trial": best.trial, "origin": best.origin, "proxy_map": best.metrics["map"]}
    resize = best.policy.resize
    return Choice(best.policy.keep, None if resize is None else resize.pixels, notes, result.seconds["wall"])


def by_fastnas(case: Case) -> Choice:
    """FastNAS's score: mAP after BatchNorm recalibration; nothing is reconstructed or trained."""
    path = case.given.out / "uniform-space.yaml"
    save_space(path, case.wide_space("l2"), case.task.graph, case.scores("l2"))
    trials = {"trials": case.given.fastnas_trials, "sampler": "nsga2", "warm_starts": False, "confirm": 0}
    return run_search(case, space=path, criterion="l2", rungs=(0,), reconstruct_images=0, **trials)


def by_lower_size(case: Case) -> Choice:
    """The dense detector at the largest input size that meets the budget."""
    return Choice({}, size_below(case))


def by_lower_size_uniform(case: Case) -> Choice:
    """The uniform policy, at the next larger input size than that which meets the budget by itself."""
    task, scores = case.at(size_below(case) + STRIDE), case.scores("obs")
    space = resolve(case.wide_space("obs"), task.graph, scores)
    return Choice(space.keep(widths_of(space, uniform(space, [case.budget]))), task.pixels)


def size_below(case: Case) -> int:
    """Pixels of the shorter side of the largest input size at which the dense detector meets the budget."""
    own, fraction = case.task.pixels, case.budget.limit / case.task.graph.gflops()
    if own is None:
        raise SystemExit(f"{case.method}: {case.config.model} has no input size that can be set")
    highest = int(own * fraction**0.5) // STRIDE * STRIDE + STRIDE  # sides are rounded, so one more is tried
    for pixels in range(min(highest, (own - 1) // STRIDE * STRIDE), 0, -STRIDE):
        if case.at(pixels).graph.gflops() <= case.budget.limit:
            return pixels
    raise SystemExit(f"{case.method}: no input size meets {case.budget.limit:.4f} GFLOPs")


def by_torch_pruning(importance: str) -> Callable[[Case], Choice]:
    """Global pruning by torch-pruning, in a process of the environment that has it."""

    def choose(case: Case) -> Choice:
        answer = case.given.out / "peers" / f"{case.name}.json"
        answer.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "config": case.config.model_dump(mode="json", include=case.config.model_fields_set),
            "importance": importance,
            "limit_gflops": case.budget.limit,
            "images": case.given.taylor_images,
            "largest_ratio": LARGEST_RATIO,
            "answer": str(answer),
        }
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [case.given.peer_python, str(PEERS), json.dumps(request)]
        ended = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if ended.returncode:
            problem = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"torch-pruning fails on {case.config.model}: {problem}")
        result = json.loads(answer.read_text(encoding="utf-8"))
        return Choice(result["keep"], notes={"pruning_ratio": result["pruning_ratio"]})

    return choose


METHODS: dict[str, Method] = {
    "uniform": one_shot("uniform, channels by Taylor", "taylor", same_ratio),
    "uniform-obs": one_shot("uniform, channels by obs", "obs", same_ratio),
    "tp-taylor": Method("torch-pruning, global Taylor", by_torch_pruning("taylor")),
    "tp-l2": Method("torch-pruning, global L2", by_torch_pruning("l2")),
    "fisher": one_shot("greedy Group Fisher", "fisher", greedy),
    "lower-size": Method("dense at a lower input size", by_lower_size),
    "lower-size-uniform": Method("uniform at a lower input size", by_lower_size_uniform, criteria=("obs",)),
    "greedy-obs": one_shot("greedy obs", "obs", greedy),
    "greedy-curves": one_shot("greedy curves", CURVES, greedy),
    "fastnas": Method("FastNAS's score", by_fastnas),
    "random": by_search("random search, our proxies", sampler="random", warm_starts=False),
    "ours-joint": by_search("autoprune, by joint", criterion="joint", curves=False),
    "ours-obs": by_search("autoprune, without curves", curves=False),
    "ours": by_search("autoprune"),
    "ours-blocks": by_search("autoprune, whole blocks", empty_blocks=True),
    "ours-sizes": by_search("autoprune, input sizes", input_sizes=INPUT_SIZES),
    "ours-all": by_search("autoprune, both", empty_blocks=True, input_sizes=INPUT_SIZES),
}
"""In the order of the table."""
