"""The methods of `search.py`: each gives one policy for a budget and a seed."""

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parts import changed

from autoprune.config import Config
from autoprune.cost.budget import parse_budget
from autoprune.importance import Importance
from autoprune.search.pipeline import search
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.one_shot import greedy, uniform, widths_of
from autoprune.space.render import save_space
from autoprune.space.resolve import resolve
from autoprune.space.space import Space
from autoprune.task.pruning_task import PruningTask
from autoprune.task.scoring import score_channels

Keep = Mapping[str, Sequence[int]]

# What recovers all policies alike: new statistics of the norms, then training on the detection loss alone.
PLAIN: dict[str, Any] = {"distill": 0, "distill_logits": 0, "reconstruct_images": 0, "regrow_rounds": 0}
LARGEST_RATIO = 0.9  # of every group, for the methods that have no bounds of their own
PEERS = Path(__file__).with_name("search_peers.py")


@dataclass(frozen=True)
class Case:
    """One method's task: a budget and a seed.

    Attributes:
        task: dense detector and data, with the settings of this seed and budget.
        given: the command line.
    """

    task: PruningTask
    given: argparse.Namespace

    @property
    def config(self) -> Config:
        """The settings of this seed and budget."""
        return self.task.config

    @cached_property
    def budget(self) -> Any:
        """The bound on the GFLOPs."""
        return parse_budget(self.config.budget_gflops[0], "gflops", self.task.graph.gflops())

    def scores(self, criterion: str) -> Importance:
        """Importance by a criterion; computed once a seed."""
        file: Path = self.given.out / f"importance-{self.config.seed}-{criterion}.safetensors"
        return score_channels(self.task, criterion, file)

    def wide_space(self, criterion: str) -> tuple[SpaceFile, Space]:
        """A space that lets every group go as far as any other."""
        file = SpaceFile(
            model=self.config.model,
            model_arguments=self.config.model_arguments,
            input_size=self.task.input_size,
            criterion=criterion,
            groups=(GroupRule(match="*", max_ratio=LARGEST_RATIO),),
        )
        return file, resolve(file, self.task.graph, self.scores(criterion))

    def search(self, name: str, **changes: Any) -> tuple[Keep, dict[str, Any]]:
        """The best policy that a search finds, and what it took."""
        out = self.given.out / "searches" / self.name(name)
        result = search(changed(self.config, **changes, out=out))
        if result.best is None:
            raise SystemExit(f"{out}: no trial was completed; `autoprune front {out}` says why")
        notes = {
            "trial": result.best.trial,
            "origin": result.best.origin,
            "proxy_map": result.best.metrics["map"],
        }
        return result.best.policy.keep, {**notes, "proxy_s": result.seconds["wall"]}

    def name(self, method: str) -> str:
        """Names the case in files."""
        return f"{method}-{self.config.budget_gflops[0].replace('%', 'pc')}-{self.config.seed}"


def by_uniform(case: Case) -> tuple[Keep, dict[str, Any]]:
    _, space = case.wide_space(case.config.criterion)
    return space.keep(widths_of(space, uniform(space, [case.budget]))), {}


def by_fisher(case: Case) -> tuple[Keep, dict[str, Any]]:
    _, space = case.wide_space("fisher")
    start = greedy(space, case.scores("fisher"), [case.budget], "fisher")
    return space.keep(widths_of(space, start)), {}


def by_fastnas(case: Case) -> tuple[Keep, dict[str, Any]]:
    file, _ = case.wide_space("l2")
    path = case.given.out / "uniform-space.yaml"
    save_space(path, file, case.task.graph, case.scores("l2"))
    changes = {"rungs": (0,), "sampler": "nsga2", "warm_starts": False, "confirm": 0}
    return case.search("fastnas", space=path, criterion="l2", trials=case.given.fastnas_trials, **changes)


def by_random(case: Case) -> tuple[Keep, dict[str, Any]]:
    return case.search("random", sampler="random", warm_starts=False)


def by_search(case: Case) -> tuple[Keep, dict[str, Any]]:
    return case.search("ours")


def by_default_search(case: Case) -> tuple[Keep, dict[str, Any]]:
    own = {name: Config.model_fields[name].default for name in PLAIN}
    return case.search("own-proxies", **own)


def by_torch_pruning(importance: str) -> Callable[[Case], tuple[Keep, dict[str, Any]]]:
    """Global pruning by torch-pruning, in a process of the environment that has it."""

    def prune(case: Case) -> tuple[Keep, dict[str, Any]]:
        answer = case.given.out / "peers" / f"{case.name(importance)}.json"
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
        subprocess.run([case.given.peer_python, str(PEERS), json.dumps(request)], check=True, env=environment)
        result = json.loads(answer.read_text(encoding="utf-8"))
        return result["keep"], {"pruning_ratio": result["pruning_ratio"]}

    return prune


METHODS: dict[str, Callable[[Case], tuple[Keep, dict[str, Any]]]] = {
    "uniform": by_uniform,
    "tp-taylor": by_torch_pruning("taylor"),
    "tp-l2": by_torch_pruning("l2"),
    "fastnas": by_fastnas,
    "fisher": by_fisher,
    "random": by_random,
    "ours": by_search,
    "own-proxies": by_default_search,
}
