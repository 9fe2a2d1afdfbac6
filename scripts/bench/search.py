r"""What a search is worth: its policies against those of other methods, all recovered alike, in one table.

Same dense weights, data, recovery and number of steps for all; each seed is a seed of everything random (the
images that channels are scored on, the search, the order of the recovery). Every result is one JSON file in
--out/results, so a run that was stopped goes on where it was.

    python scripts/bench/search.py --peer-python PYTHON_WITH_TORCH_PRUNING --out runs/bench-search

Methods:
    uniform     the same ratio for all groups, channels by autoprune's criterion
    tp-taylor   torch-pruning, global ranking by its GroupTaylorImportance
    tp-l2       torch-pruning, global ranking by its GroupMagnitudeImportance(p=2)
    fastnas     FastNAS's score (mAP after new BatchNorm statistics), channels by L2 norm, an evolutionary
                search (NSGA-II) over widths; not modelopt's own code
    fisher      Group Fisher's order, one shot: the least importance per GFLOP, again and again
    random      random search, with autoprune's proxies and space
    ours        `autoprune search` with its defaults
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from search_table import show

from autoprune.config import Config, make_config
from autoprune.cost.budget import parse_budget
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.errors import DataError
from autoprune.export import load
from autoprune.files import write_text
from autoprune.importance import Importance
from autoprune.models import resize_rule
from autoprune.pipeline import search
from autoprune.recovery import recover_policy
from autoprune.search.seeds import greedy, uniform
from autoprune.search.space import GroupRule, Space, SpaceFile, resolve, save_space
from autoprune.search.subject import Subject, load_subject, score_channels

Keep = Mapping[str, Sequence[int]]

LARGEST_RATIO = 0.9  # of every group, for the methods that have no bounds of their own
PEERS = Path(__file__).with_name("search_peers.py")


@dataclass(frozen=True)
class Case:
    """One method's task: a budget and a seed.

    Attributes:
        subject: dense detector and data, with the settings of this seed and budget.
        given: the command line.
    """

    subject: Subject
    given: argparse.Namespace

    @property
    def config(self) -> Config:
        """The settings of this seed and budget."""
        return self.subject.config

    @cached_property
    def budget(self) -> Any:
        """The bound on the GFLOPs."""
        return parse_budget(self.config.budget_gflops[0], "gflops", self.subject.graph.gflops())

    def scores(self, criterion: str) -> Importance:
        """Importance by a criterion; computed once a seed."""
        file: Path = self.given.out / f"importance-{self.config.seed}-{criterion}.safetensors"
        return score_channels(self.subject, criterion, file)

    def wide_space(self, criterion: str) -> tuple[SpaceFile, Space]:
        """A space that lets every group go as far as any other."""
        file = SpaceFile(
            model=self.config.model,
            model_arguments=self.config.model_arguments,
            input_size=self.subject.input_size,
            criterion=criterion,
            groups=(GroupRule(match="*", max_ratio=LARGEST_RATIO),),
        )
        return file, resolve(file, self.subject.graph, self.scores(criterion))

    def search(self, name: str, **changes: Any) -> tuple[Keep, dict[str, Any]]:
        """The best policy that a search finds, and what it took."""
        out = self.given.out / "searches" / self.name(name)
        fields = {field: getattr(self.config, field) for field in self.config.model_fields_set}
        result = search(make_config(**{**fields, **changes, "out": out}))
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
    return space.keep(uniform(space, [case.budget]).widths), {}


def by_fisher(case: Case) -> tuple[Keep, dict[str, Any]]:
    _, space = case.wide_space("fisher")
    return space.keep(greedy(space, case.scores("fisher"), [case.budget], "fisher").widths), {}


def by_fastnas(case: Case) -> tuple[Keep, dict[str, Any]]:
    file, _ = case.wide_space("l2")
    path = case.given.out / "uniform-space.yaml"
    save_space(path, file, case.subject.graph, case.scores("l2"))
    changes = {"rungs": (0,), "sampler": "nsga2", "warm_starts": False, "trials": case.given.fastnas_trials}
    return case.search("fastnas", space=path, criterion="l2", **changes)


def by_random(case: Case) -> tuple[Keep, dict[str, Any]]:
    return case.search("random", sampler="random", warm_starts=False)


def by_search(case: Case) -> tuple[Keep, dict[str, Any]]:
    return case.search("ours")


def by_torch_pruning(importance: str) -> Callable[[Case], tuple[Keep, dict[str, Any]]]:
    """Global pruning by torch-pruning, in a process of the environment that has it."""

    def prune(case: Case) -> tuple[Keep, dict[str, Any]]:
        answer = case.given.out / "peers" / f"{case.name(importance)}.json"
        answer.parent.mkdir(parents=True, exist_ok=True)
        asked = {
            "config": case.config.model_dump(mode="json", include=case.config.model_fields_set),
            "importance": importance,
            "limit_gflops": case.budget.limit,
            "images": case.given.taylor_images,
            "largest_ratio": LARGEST_RATIO,
            "answer": str(answer),
        }
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        subprocess.run([case.given.peer_python, str(PEERS), json.dumps(asked)], check=True, env=environment)
        found = json.loads(answer.read_text(encoding="utf-8"))
        return found["keep"], {"pruning_ratio": found["pruning_ratio"]}

    return prune


METHODS: dict[str, Callable[[Case], tuple[Keep, dict[str, Any]]]] = {
    "uniform": by_uniform,
    "tp-taylor": by_torch_pruning("taylor"),
    "tp-l2": by_torch_pruning("l2"),
    "fastnas": by_fastnas,
    "fisher": by_fisher,
    "random": by_random,
    "ours": by_search,
}


def measure(method: str, case: Case) -> dict[str, Any]:
    """Finds a policy, recovers it, and scores it on validation and test images."""
    started = time.perf_counter()
    keep, notes = METHODS[method](case)
    keep = {name: tuple(kept) for name, kept in keep.items()}
    chosen = time.perf_counter()
    costs = case.subject.costs(keep)
    if costs["gflops"] > case.budget.limit:
        raise SystemExit(
            f"{method}: {costs['gflops']:.4f} GFLOPs are above the budget, {case.budget.limit:.4f}"
        )
    folder = case.given.out / "recovered" / case.name(method)
    recovered = recover_policy(
        case.subject,
        keep,
        folder,
        case.scores(case.config.criterion),
        what=f"recovery of {case.name(method)}",
    )
    model = load(folder).to(case.subject.device)
    return {
        "method": method,
        "budget": case.config.budget_gflops[0],
        "seed": case.config.seed,
        "val": recovered.map,
        "test": score_test(model, case.subject),
        **costs,
        "policy_s": chosen - started,
        "recovery_s": recovered.metrics["training_s"],
        "notes": notes,
    }


def score_test(model: Any, subject: Subject) -> float | None:
    """MAP on the test images, or ``None`` where the data has none."""
    try:
        test = open_data(subject.config.data, "test", resize_rule(subject.model))
    except DataError:
        return None
    return evaluate(model, test, subject.device, batch_size=subject.config.batch_size).map


def main() -> None:
    given = arguments()
    common = settings(given)
    guard(given.out / "settings.json", common)
    subject = load_subject(make_config(**common))
    dense_file = given.out / "results" / "dense.json"
    if not dense_file.exists():
        val = evaluate(subject.model, subject.val, subject.device, batch_size=subject.config.batch_size).map
        write(dense_file, {"val": val, "test": score_test(subject.model, subject), **subject.costs({})})
    for seed in range(given.seeds):
        for budget in given.budgets.split(","):
            for method in given.methods.split(","):
                config = make_config(**common, seed=seed, budget_gflops=budget)
                case = Case(replace(subject, config=config), given)
                file = given.out / "results" / f"{case.name(method)}.json"
                if not file.exists():
                    print(f"{case.name(method)} …", file=sys.stderr, flush=True)
                    write(file, measure(method, case))
    show(given.out / "results", given.budgets.split(","), given.steps)


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Fields of `Config` that all methods share."""
    more = dict(text.split("=", 1) for text in given.set)
    return {
        "model": given.model,
        "model_arguments": json.loads(given.model_arguments),
        "weights": given.weights,
        "data": given.data,
        "steps": given.steps,
        "trials": given.trials,
        **{name: _value(text) for name, text in more.items()},
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def guard(file: Path, common: dict[str, Any]) -> None:
    """Refuses to mix results of different settings in one folder."""
    if file.exists() and (found := json.loads(file.read_text(encoding="utf-8"))) != common:
        differing = next(name for name in {**found, **common} if found.get(name) != common.get(name))
        raise SystemExit(
            f"{file.parent} holds results with {differing} {found.get(differing)!r}, not "
            f"{common.get(differing)!r}; give another --out"
        )
    write(file, common)


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="../shared/data/bccd")
    parser.add_argument("--weights", default="../shared/models/retinanet_resnet18_bccd.safetensors")
    parser.add_argument("--model", default="retinanet_resnet18_fpn")
    parser.add_argument("--model-arguments", default='{"min_size": 192, "max_size": 256}', help="JSON")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--budgets", default="50%,33%")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--steps", type=int, default=200, help="of each recovery")
    parser.add_argument("--trials", type=int, default=24, help="of ours and of random search")
    parser.add_argument("--fastnas-trials", type=int, default=72)
    parser.add_argument("--taylor-images", type=int, default=40, help="for torch-pruning's Taylor scores")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch-pruning")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="any other field of the settings"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.methods.split(",") if name not in METHODS]:
        parser.error(f"there is no method {unknown[0]}; choose {', '.join(METHODS)}")
    return given


if __name__ == "__main__":
    main()
