"""The Ray engine with evaluators that sleep: overhead, many workers, kills, and a node that dies."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from scale_work import RUNGS, Plan, sleeper

from autoprune.engines import ray as engine
from autoprune.run.directory import RunDirectory
from autoprune.study.ledger import Ledger
from autoprune.study.records import Record
from autoprune.study.trials import LedgerSettings


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds per trial that are not work, beside Tune's plain function API with its OptunaSearch."""
    count, trials = arguments.workers or 2, arguments.trials or 100
    with _ray_here(count), tempfile.TemporaryDirectory() as folder:
        ledger = _ledger(Path(folder), trials, rungs=1)
        engine.run(ledger, sleeper(0.0), lambda number: None, engine.Cluster(workers=count))
        ours = _figures(ledger, count)
        theirs = _function_api(count, trials, folder)
    figures = {"workers": count, "trials": trials, "autoprune": ours, "tune_function_api": theirs}
    print(json.dumps(figures, indent=1))
    return figures


def workers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fraction of the time that workers work, from when all have loaded to the last trial's end."""
    count, trials = arguments.workers or 64, arguments.trials or 1000
    seconds = 5.0 if arguments.seconds is None else arguments.seconds
    with _ray_here(count), tempfile.TemporaryDirectory() as folder:
        ledger = _ledger(Path(folder), trials, rungs=RUNGS, rung_keep=1.0)
        load = sleeper(seconds, Path(folder) / "log", together=count)
        engine.run(ledger, load, lambda number: None, engine.Cluster(workers=count))
        figures = {"workers": count, "trials": trials, "seconds": seconds, **_figures(ledger, count)}
    print(json.dumps(figures, indent=1))
    return figures


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills the driver at random moments, and in half of the runs a worker; resumes until all is done."""
    trials, chance = arguments.trials or 20, random.Random(arguments.seed)
    seconds = 1.0 if arguments.seconds is None else arguments.seconds
    outcomes = []
    with _cluster(2) as address:
        for run in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                outcome = _one_run(Path(folder), address, trials, seconds, chance, worker=run % 2 == 1)
            outcomes.append(outcome)
            print(run, outcome, flush=True)
    good = sum(not outcome["problems"] for outcome in outcomes)
    print(f"{good} of {len(outcomes)} runs ended with {trials} trials, none lost, none twice")
    return {"trials": trials, "runs": len(outcomes), "good": good, "outcomes": outcomes}


def nodes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Two nodes with a worker each, of which one is killed in the middle."""
    trials, seconds = arguments.trials or 40, 2.0 if arguments.seconds is None else arguments.seconds
    whole, halved = (_two_nodes(trials, seconds, kill) for kill in (False, True))
    figures = {"trials": trials, "seconds": seconds, "whole": whole, "one node killed": halved}
    figures["ratio"] = round(halved["wall_s"] / whole["wall_s"], 2)
    print(json.dumps(figures, indent=1))
    return figures


def _two_nodes(trials: int, seconds: float, kill: bool) -> dict[str, float]:
    """A search on two raylets; with ``kill``, the second one dies when half of the trials are done."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": engine.STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    second = cluster.add_node(**options)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as folder:
            ledger = _ledger(Path(folder), trials, rungs=RUNGS, rung_keep=1.0)

            def finished(number: int) -> None:
                if kill and len(ledger.finished()) == trials // 2 and second in cluster.worker_nodes:
                    cluster.remove_node(second, allow_graceful=False)

            load = sleeper(seconds, Path(folder) / "log", together=2)
            engine.run(ledger, load, finished, engine.Cluster(workers=2))
            complete = sum(record.state == "complete" for record in ledger.finished())
            if complete != trials:
                raise SystemExit(f"{complete} trials are complete instead of {trials}")
            lost = sum("losses" in trial.user_attrs for trial in ledger.study.trials)
            return {**_figures(ledger, 2), "put_back": lost}
    finally:
        ray.shutdown()
        cluster.shutdown()


def _one_run(
    folder: Path, address: str, trials: int, seconds: float, chance: random.Random, worker: bool
) -> dict[str, Any]:
    """Starts drivers one after the other until one ends by itself; says what is wrong with the result."""
    kept: dict[int, Any] = {}
    runs: dict[tuple[int, ...], int] = {}  # of policies complete at a kill: how often until then
    problems, drivers = [], 0
    while True:
        drivers += 1
        command = [sys.executable, __file__, str(folder), address, str(trials), str(seconds)]
        driver = subprocess.Popen(command)
        done = _lines(folder)
        while driver.poll() is None and _lines(folder) == done:  # until its workers are running
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 0.6) * trials * seconds / 2)
        if worker and (pids := {json.loads(line)["pid"] for line in _text(folder)[-2:]}):
            worker = False
            os.kill(chance.choice(sorted(pids)), signal.SIGKILL)
            time.sleep(chance.uniform(0, 2 * seconds))
        if driver.poll() is None and drivers < 4:
            driver.kill()
        if driver.wait() == 0:
            break
        if driver.returncode != -signal.SIGKILL:
            problems.append(f"a driver ended with {driver.returncode}")
            break
        tops = _tops(folder)
        for record in _read(folder)[0]:
            problems += [f"trial {record.number} changed"] * (
                kept.setdefault(record.number, record) != record
            )
            if record.state == "complete":
                policy = tuple(record.widths.values())
                runs.setdefault(policy, tops.count(policy))
    records, best = _read(folder)
    policies = [tuple(record.widths.values()) for record in records]
    if len(records) != trials:
        problems.append(f"{len(records)} trials instead of {trials}")
    if len(set(policies)) != len(policies):
        problems.append("a policy was tried twice")
    if lost := set(kept) - {record.number for record in records}:
        problems.append(f"lost: {sorted(lost)}")
    values = [(r.metrics["map"], r.metrics["gflops"], r.number) for r in records if r.state == "complete"]
    front = {n for m, g, n in values if not any(x >= m and y <= g and (x, y) != (m, g) for x, y, _ in values)}
    if front != {record.number for record in best}:
        problems.append("the front is not that of the trials")
    tops = _tops(folder)
    if any(tops.count(policy) > count for policy, count in runs.items()):
        problems.append("a finished trial was run again")
    return {"drivers": drivers, "finished_at_last_kill": len(kept), "problems": problems}


def drive(folder: Path, address: str, trials: int, seconds: float) -> None:
    """One driver's work, as the pipeline does it around the engine."""
    run = RunDirectory(folder)
    with run.locked():
        run.repair_journal()
        load = sleeper(seconds, folder / "log")
        engine.run(_ledger(folder, trials), load, lambda number: None, engine.Cluster(address, workers=2))


def _ledger(folder: Path, trials: int, rungs: int = RUNGS, rung_keep: float = 0.5) -> Ledger:
    settings = LedgerSettings(
        trials=trials,
        objectives=("map", "gflops"),
        rungs=rungs,
        rung_keep=rung_keep,
        sampler="random",
        seed=0,
        confirm=0,
        parallel=True,
        racing=False,
    )
    return Ledger(folder / "study.journal", "s", Plan(), settings)


def _read(folder: Path) -> tuple[list[Record], list[Record]]:
    """The finished trials and the front, from a copy: a ledger puts trials in flight back into the queue."""
    with tempfile.TemporaryDirectory() as elsewhere:
        journal = (folder / "study.journal").read_bytes()
        (Path(elsewhere) / "study.journal").write_bytes(journal[: journal.rfind(b"\n") + 1])
        ledger = _ledger(Path(elsewhere), 1)
        return ledger.finished(), ledger.front()


def _text(folder: Path) -> list[str]:
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def _tops(folder: Path) -> list[tuple[int, ...]]:
    """Widths of each time that a worker did the top rung."""
    lines = map(json.loads, _text(folder))
    return [tuple(line["widths"]) for line in lines if line["rung"] == RUNGS - 1]


def _lines(folder: Path) -> int:
    return len(_text(folder))


def _figures(ledger: Ledger, count: int) -> dict[str, float]:
    """Wall time from the first trial's begin to the last one's end, and what of it was not work."""
    rungs = [metrics for record in ledger.finished() for metrics in record.rungs]
    wall = max(metrics["ended"] for metrics in rungs) - min(metrics["began"] for metrics in rungs)
    work = sum(metrics["ended"] - metrics["began"] for metrics in rungs)
    return {
        "wall_s": round(wall, 2),
        "utilization": round(work / (count * wall), 4),
        "overhead_s_per_trial": round((count * wall - work) / len(ledger.finished()), 4),
    }


def _function_api(count: int, trials: int, folder: str) -> dict[str, float]:
    """The same trials as users of Tune write them."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def objective(config: dict[str, float]) -> None:
        began = time.time()
        tune.report({"map": config["a"], "began": began, "ended": time.time()})

    tuner = tune.Tuner(
        objective,
        param_space={name: tune.uniform(0, 1) for name in "abc"},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric="map", mode="max"), num_samples=trials, max_concurrent_trials=count
        ),
        run_config=tune.RunConfig(storage_path=folder, name="theirs", verbose=0),
    )
    results = [result.metrics for result in tuner.fit()]
    first = sorted(metrics["began"] for metrics in results)[count - 1]  # the first workers are up
    wall = max(metrics["ended"] for metrics in results) - first
    return {"wall_s": round(wall, 2), "overhead_s_per_trial": round(count * wall / (trials - count), 4)}


@contextmanager
def _ray_here(count: int) -> Iterator[None]:
    """A Ray of ``count`` logical CPUs on this machine."""
    warnings.simplefilter("ignore")
    ray.init(
        address="local",
        num_cpus=count,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=engine.STORE_BYTES,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _cluster(count: int) -> Iterator[str]:
    """A Ray of its own that outlives the drivers that connect to it; yields its address."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": count, "include_dashboard": False, "object_store_memory": engine.STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    drive(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
