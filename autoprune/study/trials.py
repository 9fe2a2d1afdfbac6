"""What passes between plan, ledger and engines: warm starts, candidates, records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

Metrics = Mapping[str, float]
Keep = Mapping[str, Sequence[int]]
State = Literal["running", "complete", "stopped", "failed"]
AVERAGED = ("map", "map50")  # over the measurements of a trial
Work = TypeVar("Work")


@dataclass(frozen=True)
class WarmStart:
    """A policy to try before the sampler proposes any.

    Attributes:
        origin: how it was found, such as ``"uniform"``.
        budget: index of the budget it was made for.
        fractions: value of each variable, 0 to 1.
        widths: its exact widths; ``None`` where `Plan.widths` gives them from ``fractions``.
    """

    origin: str
    budget: int
    fractions: tuple[float, ...]
    widths: Mapping[str, int] | None = None


class Plan(Protocol):
    """What the ledger has to know about space and budgets."""

    @property
    def variables(self) -> Sequence[str]:
        """Names of the space's variables."""

    @property
    def budgets(self) -> Sequence[float | None]:
        """GFLOPs that candidates are fitted to, one for each budget; ``None`` where GFLOPs are free."""

    @property
    def warm_starts(self) -> Sequence[WarmStart]:
        """In the order in which they are tried."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What the study is about (hashes of space and weights); a study of another one is refused."""

    def widths(self, fractions: np.ndarray[Any, Any], budget: int) -> dict[str, int]:
        """The widths of fractions [variables], put on a budget."""

    def removed(self, widths: Sequence[Mapping[str, int]]) -> np.ndarray[Any, Any]:
        """Importance that each of N widths removes from each variable, [N, variables]."""

    def cheapest(self, weights: np.ndarray[Any, Any], budget: int, level: float) -> np.ndarray[Any, Any]:
        """Fractions of the policy on a budget that removes the least importance, weighted by [variables].

        Where GFLOPs are free, ``level`` says which to meet: 0 the least reachable ones, 1 the dense ones.
        """

    def keep(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The kept channels of each pruned group."""


@dataclass(frozen=True)
class LedgerSettings:
    """How a search goes; see `Config` for the fields of the same names.

    Attributes:
        rungs: number of rungs.
        parallel: trials run side by side.
        confirm: repetitions for each budget, at most.
    """

    trials: int
    objectives: tuple[str, ...] = ("map", "gflops")
    rungs: int = 1
    rung_keep: float = 0.5
    sampler: str = "tpe"
    seed: int = 0
    parallel: bool = False
    confirm: int = 0


@dataclass(frozen=True)
class Candidate:
    """One trial's work: a policy that no trial had before, or one to measure again.

    Attributes:
        number: the trial's number in the study.
        origin: the warm start's, or ``"sampler"``.
        widths: channels that each group has after pruning.
        keep: kept channels of each pruned group.
        repeat: 0, or 1 where another trial had this policy and it is recovered with another seed.
    """

    number: int
    origin: str
    widths: Mapping[str, int]
    keep: Mapping[str, tuple[int, ...]]
    repeat: int = 0


@dataclass(frozen=True)
class Record:
    """What the ledger knows of one trial.

    Attributes:
        state: ``complete`` reached the top rung, ``stopped`` did not, ``failed`` has a ``reason``.
        origin: the warm start's, or ``"sampler"``.
        budget: GFLOPs it was fitted to, if any.
        rungs: metrics at each rung that it reached.
        ranked_by: the metric that it was compared by at each of them, ``None`` where it was not compared.
        reason: why it failed.
        same_as: trial that had the same policy; this one was not run.
        repeat_of: trial that this one measures again, with another seed.
        again: metrics at the top rung of the trials that measured this one again.
    """

    number: int
    state: State
    origin: str
    budget: float | None
    widths: Mapping[str, int]
    rungs: tuple[Metrics, ...] = ()
    ranked_by: tuple[str | None, ...] = ()
    reason: str | None = None
    same_as: int | None = None
    repeat_of: int | None = None
    again: tuple[Metrics, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether it is one of the trials asked for, and no repetition of another."""
        return self.same_as is None and self.repeat_of is None

    @property
    def metrics(self) -> Metrics:
        """Metrics at the highest rung that it reached; the mAP is the mean of all that measured it."""
        if not self.again:
            return self.rungs[-1] if self.rungs else {}
        seen = [self.rungs[-1], *self.again]
        means = {name: sum(one[name] for one in seen) / len(seen) for name in AVERAGED if name in seen[0]}
        return {**self.rungs[-1], **means}

    @property
    def maps(self) -> list[float]:
        """The mAP of each time that it was measured at the top rung, as far as it came there."""
        top = [*self.rungs[-1:], *self.again] if self.state == "complete" else []
        return [metrics["map"] for metrics in top]

    def seconds(self, what: str) -> float:
        """Seconds of all rungs together spent on ``training``, ``evaluation`` or ``other``."""
        return sum(metrics.get(f"{what}_s", 0.0) for metrics in self.rungs)


class Evaluator(Protocol[Work]):
    """What engines run. A test's stand-in sleeps or computes a formula."""

    def evaluate(
        self, keep: Keep, rung: int, state: Work | None, repeat: int = 0
    ) -> tuple[dict[str, float], Work]:
        """Takes a policy to a rung.

        Args:
            keep: kept channels of each pruned group.
            rung: 0, 1, …; rungs are climbed one by one.
            state: what the rung below returned.
            repeat: numbers the measurements of a policy; each has a seed of its own.

        Returns:
            The metrics at this rung (times end in ``_s``), and the state for the next.

        Raises:
            TrainingError: the policy can't be evaluated; the trial fails and the search goes on.
        """
