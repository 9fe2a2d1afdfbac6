"""What passes between plan, ledger and engines: the plan, settings, candidates, the evaluator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from autoprune.config import Config
from autoprune.data.rivals import Rival
from autoprune.space.warm_start import WarmStart

Metrics = Mapping[str, float]
SAMPLED = "sampler"  # the origin of what no warm start proposed
Work = TypeVar("Work")


class Plan(Protocol):
    """What the ledger has to know about space and budgets."""

    @property
    def variables(self) -> Sequence[str]:
        """Names of the space's variables."""

    @property
    def budgets(self) -> Sequence[float | None]:
        """GFLOPs that candidates are projected onto, one for each budget; ``None`` where they are free."""

    @property
    def warm_starts(self) -> Sequence[WarmStart]:
        """In the order in which they are tried."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What the study is about (hashes of space and weights); a study of another one is refused."""

    def widths(self, fractions: np.ndarray[Any, Any], budget: int) -> dict[str, int]:
        """The widths of fractions [variables], projected onto a budget."""

    def removed(self, widths: Sequence[Mapping[str, int]]) -> np.ndarray[Any, Any]:
        """Importance that each of N widths removes from each variable, [N, variables]."""

    def cheapest(
        self,
        weights: np.ndarray[Any, Any],
        budget: int,
        level: float,
        near: Mapping[str, int] | None = None,
        reach: int = 1,
    ) -> np.ndarray[Any, Any]:
        """Fractions of the policy on a budget that removes the least importance, weighted by [variables].

        Where GFLOPs are free, ``level`` says which to meet: 0 the least reachable ones, 1 the dense ones.
        With ``near``, each variable is at most ``reach`` levels from these widths, which meet the budget.
        """


@dataclass(frozen=True)
class LedgerSettings:
    """How a search proceeds; `Config` describes the fields of the same names and has their defaults.

    Attributes:
        rungs: number of rungs.
        confirm: repeats for each budget, at most.
        parallel: whether several trials run at once.
        racing: whether candidates know the trials that they must beat.
    """

    trials: int
    objectives: tuple[str, ...]
    rungs: int
    rung_keep: float
    sampler: str
    seed: int
    confirm: int
    parallel: bool
    racing: bool

    @classmethod
    def from_config(cls, config: Config, workers: int = 1) -> "LedgerSettings":
        """The settings of a run that has so many trials in flight at once, at most."""
        return cls(
            trials=config.trials,
            objectives=config.objectives,
            rungs=len(config.rungs),
            rung_keep=config.rung_keep,
            sampler=config.sampler,
            seed=config.seed,
            confirm=config.confirm,
            parallel=workers > 1,
            racing=config.racing,
        )


@dataclass(frozen=True)
class Candidate:
    """One trial's work: a policy that no trial had before, or one to re-evaluate.

    Attributes:
        number: the trial's number in the study.
        origin: the warm start's, or ``"sampler"``.
        widths: channels that each group has after pruning.
        repeat: 0, or 1 where another trial had this policy and it is recovered with another seed.
        rivals: for each rung the trials that it must beat there, as far as they are known; see `Rival`.
    """

    number: int
    origin: str
    widths: Mapping[str, int]
    repeat: int = 0
    rivals: tuple[tuple[Rival, ...], ...] = ()

    def rivals_at(self, rung: int) -> tuple[Rival, ...]:
        """The trials that it must beat at a rung."""
        return self.rivals[rung] if rung < len(self.rivals) else ()


class Evaluator(Protocol[Work]):
    """What engines run. A test's stand-in computes a formula."""

    def evaluate(
        self,
        widths: Mapping[str, int],
        rung: int,
        state: Work | None,
        repeat: int = 0,
        rivals: Sequence[Rival] = (),
    ) -> tuple[Mapping[str, float | str], Work]:
        """Takes a policy to a rung.

        Args:
            widths: channels that each group has after pruning.
            rung: 0, 1, …; rungs are climbed one by one.
            state: what the rung below returned.
            repeat: numbers the evaluations of a policy; each has a seed of its own.
            rivals: trials that it must beat at this rung, or else it may be evaluated in part.

        Returns:
            The metrics at this rung (times end in ``_s``; `data.rivals` names two more), and the state for
            the next.

        Raises:
            TrainingError: the policy can't be evaluated; the trial fails and the search continues.
        """


def origin_label(origin: str) -> str:
    """A trial's origin for people: the name of its warm start, or ``searched``."""
    return "searched" if origin == SAMPLED else origin
