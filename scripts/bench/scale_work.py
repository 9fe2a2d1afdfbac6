"""What the benchmarks of the engine run in place of detectors: a plan and evaluators that sleep."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.space.warm_start import WarmStart

RUNGS = 2


@dataclass
class Plan:
    """Three groups of 1,000 channels; nothing is computed. See `autoprune.study.trials.Plan`."""

    variables: tuple[str, ...] = ("a", "b", "c")
    budgets: tuple[float | None, ...] = (None,)
    warm_starts: tuple[WarmStart, ...] = ()
    identity: dict[str, str] = field(default_factory=dict)

    # ruff: noqa: D102
    def widths(self, fractions: Any, budget: int) -> dict[str, int]:
        return {
            name: 1 + int(999 * (1 - fraction))
            for name, fraction in zip(self.variables, fractions, strict=True)
        }

    def removed(self, widths: Sequence[Mapping[str, int]]) -> Any:
        return np.array([[1000 - each[name] for name in self.variables] for each in widths], dtype=float)

    def cheapest(self, weights: Any, budget: int, level: float, near: Any = None, reach: int = 1) -> Any:
        raise NotImplementedError("the bench uses samplers that do not ask")


def sleeper(seconds: float, log: Path | None = None, together: int = 0) -> Callable[[], Any]:
    """Loads an evaluator that sleeps ``seconds`` per trial, an equal part of it in each rung.

    Args:
        seconds: of a trial that reaches the top.
        log: file that gets a line for each rung that was done.
        together: workers that wait for each other before the first trial; their places are files beside log.
    """

    class Sleeper:
        def __init__(self) -> None:
            if together and log is not None:
                Path(f"{log}.{os.getpid()}").touch()
                while len(list(log.parent.glob(f"{log.name}.*"))) < together:
                    time.sleep(0.2)

        def evaluate(
            self, widths: Any, rung: int, state: Any, repeat: int = 0, rivals: Any = ()
        ) -> tuple[dict[str, float], Any]:
            began = time.time()
            time.sleep(seconds / RUNGS)
            channels = list(widths.values())
            score = 0.5 - abs(channels[0] - 700) / 2000 + rung / 100
            metrics = {"map": score, "gflops": float(sum(channels))}
            metrics |= {"began": began, "ended": time.time()}
            if log is not None:
                with log.open("a") as lines:
                    lines.write(json.dumps({"widths": channels, "rung": rung, "pid": os.getpid()}) + "\n")
            return metrics, state

    return Sleeper
