"""The ledger: what a search does next. Engines ask it for trials and report to it; `store` keeps them."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.data.rivals import MAPS, RACED, Rival
from autoprune.seeding import seed as derive
from autoprune.study.confirm import next_to_confirm
from autoprune.study.records import Record, directions, front_of, objective_values
from autoprune.study.rivals import rivals
from autoprune.study.rungs import is_promoted, score_of
from autoprune.study.samplers import SamplerInputs, make_sampler
from autoprune.study.store import TrialStore, waiting
from autoprune.study.trial_attributes import (
    TrialAttributes,
    budget_of,
    counts,
    encode,
    encode_ranking,
    encode_rung,
    fractions_of,
)
from autoprune.study.trials import Candidate, LedgerSettings, Metrics, Plan

MAX_DUPLICATES = 200  # known policies proposed in a row, after which the space counts as exhausted
MAX_LOSSES = 3  # workers that may be lost with a policy before it fails

Policy = tuple[tuple[str, int], ...]


class Ledger:
    """Proposes trials, decides at rungs, and keeps the results.

    Args:
        storage: path of a journal file, or any Optuna storage URL.
        name: the study's name in the storage.
        plan: space and budgets.
        settings: how the search proceeds.
        accepts: parts of the plan's identity that may have changed; then all trials so far are set aside.

    Attributes:
        exhausted: the space has no policy left that was not tried.

    Raises:
        RunError: the storage can't be opened, the study is of another search, or another driver uses it.
    """

    def __init__(
        self,
        storage: Path | str,
        name: str,
        plan: Plan,
        settings: LedgerSettings,
        accepts: Collection[str] = (),
    ) -> None:
        self.plan, self.settings, self.exhausted = plan, settings, False
        self._directions = directions(settings.objectives)
        self._store = TrialStore(storage, name, plan, settings.objectives, accepts)
        self._first: dict[Policy, int] = {}  # the trial that first had a policy
        try:
            self._resume()
            for record in self.records():
                if record.counts:
                    self._first.setdefault(_policy(record.widths), record.number)
        except BaseException:  # a damaged study, Ctrl-C
            self.release()
            raise

    def release(self) -> None:
        """Lets another driver in; nothing may be written after it."""
        self._store.release()

    # engines call these

    def ask(self) -> Candidate | None:
        """The next trial to run; ``None`` while all that are requested are finished or in flight.

        After these, the top candidates are re-evaluated, so that none leads by seed variance (`confirm`).
        """
        for _ in range(MAX_DUPLICATES):
            if self._enough and not self._repeats_wait() and not self._enqueue_repeat():
                return None
            with self._store.batch():
                trial = self._next()
                widths = self._widths(trial)
                self._store.write(trial.number, encode(widths=widths))
            attributes = TrialAttributes(trial)
            is_repeat = attributes.repeat_of is not None
            earlier = trial.number if is_repeat else self._first.setdefault(_policy(widths), trial.number)
            if earlier == trial.number:
                rivals = () if is_repeat else self._rivals(trial)
                return Candidate(trial.number, attributes.origin, widths, int(is_repeat), rivals)
            self._store.copy_result(trial.number, earlier)
        self.exhausted = True
        return self.ask()

    def report(self, number: int, rung: int, metrics: Mapping[str, float | str]) -> bool:
        """Takes a trial's metrics at a rung and says whether it is promoted; else it is finished.

        Args:
            number: the trial.
            rung: 0, 1, …
            metrics: all objectives; times end in ``_s``. What is text is kept beside them.
        """
        maps = metrics.get(MAPS)
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, str)}
        missing = [
            name for name in self.settings.objectives if not math.isfinite(numbers.get(name, math.nan))
        ]
        if missing:
            self.fail(number, f"{missing[0]} is not a number at rung {rung}")
            return False
        with self._store.batch():
            return self._decide(number, rung, numbers, maps if isinstance(maps, str) else None)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial that can't be evaluated; it counts as one of the trials requested."""
        self._store.fail(number, encode(reason=reason))

    def requeue_lost(self, number: int, reason: str, counts: bool = True) -> None:
        """Puts a trial whose worker was lost back into the queue.

        Args:
            number: the trial.
            reason: why the worker was lost.
            counts: whether it counts as one of the `MAX_LOSSES` after which the trial fails.
        """
        trial = self._store.trial(number)
        losses = TrialAttributes(trial).losses + counts
        if losses >= MAX_LOSSES:
            self.fail(number, f"{losses} workers were lost with it, at last: {reason}")
            return
        self._requeue(trial, losses)

    # readers call these

    @property
    def study(self) -> optuna.Study:
        """The Optuna study."""
        return self._store.study

    @property
    def done(self) -> bool:
        """Whether no trial is queued, in flight, or still to be proposed."""
        running = any(trial.state == TrialState.RUNNING for trial in self._store.trials())
        return self._enough and not running and not self._repeats_wait() and self._next_to_confirm() is None

    def records(self) -> list[Record]:
        """All trials but those put back into the queue, by number; also those that are set aside."""
        return self._store.records()

    def finished(self) -> list[Record]:
        """The trials that count: run to their end, with no policy twice."""
        return [record for record in self.records() if record.counts and record.state != "running"]

    def front(self) -> list[Record]:
        """The trials at the top rung that no other dominates, cheapest first."""
        return front_of(self.records(), self.settings.objectives)

    @property
    def notes(self) -> dict[str, Any]:
        """What was kept about the run as a whole, such as the dense detector's metrics."""
        return self._store.notes

    def note(self, name: str, value: Any) -> None:
        """Keeps something about the run as a whole; any JSON value."""
        self._store.note(name, value)

    # decisions

    @property
    def _enough(self) -> bool:
        """Whether all policies have a trial: as many as are requested, or all of an exhausted space."""
        trials = self._store.trials()
        return (self.exhausted and not waiting(trials)) or sum(map(counts, trials)) >= self.settings.trials

    def _current(self) -> list[Record]:
        """The trials on the run's data."""
        return [record for record in self.records() if not record.other_data]

    def _repeats_wait(self) -> bool:
        return any(queued.repeat_of is not None for queued in waiting(self._store.trials()))

    def _next_to_confirm(self) -> Record | None:
        """The trial to re-evaluate; unknown while one that could lead is in flight."""
        settings, trials = self.settings, self._store.trials()
        if not settings.confirm or any(t.state == TrialState.RUNNING and counts(t) for t in trials):
            return None  # found out before all records are read: engines with idle workers ask often
        return next_to_confirm(self._current(), settings.objectives, settings.confirm)

    def _enqueue_repeat(self) -> bool:
        """Puts the leading trial into the queue again; whether there is one to re-evaluate."""
        if (leader := self._next_to_confirm()) is None:
            return False
        self._store.enqueue_repeat(leader)
        return True

    def _next(self) -> FrozenTrial:
        """A RUNNING trial with all parameters: from the queue, a warm start, or the sampler."""
        settings, records = self.settings, self._current()
        live = [trial for trial in self._store.trials() if not TrialAttributes(trial).requeued]
        if not waiting(live):
            started = {TrialAttributes(trial).warm_start for trial in live}
            remaining = [index for index in range(len(self.plan.warm_starts)) if index not in started]
            if remaining:
                self._enqueue_warm_start(remaining[0])
        inputs = SamplerInputs(
            seed=derive(settings.seed, "trial", len(live)),
            run_seed=derive(settings.seed, "sampler"),
            parallel=settings.parallel,
            plan=self.plan,
            records=records,
            dense_map=self.notes.get("dense", {}).get("map"),
        )
        return self._store.ask(make_sampler(settings.sampler, inputs))

    def _enqueue_warm_start(self, index: int) -> None:
        start = self.plan.warm_starts[index]
        attributes = encode(origin=start.origin, warm_start=index, widths=start.widths)
        self._store.enqueue(start.fractions, start.budget, attributes)

    def _rivals(self, trial: FrozenTrial) -> tuple[tuple[Rival, ...], ...]:
        """For each rung the trials that this one must beat, if trials race."""
        if not self.settings.racing:
            return ()
        promoted = TrialAttributes(trial).warm_start is not None
        budget = self.plan.budgets[budget_of(trial)]
        return rivals(self._current(), budget, self.settings, promoted)

    def _widths(self, trial: FrozenTrial) -> dict[str, int]:
        widths = TrialAttributes(trial).widths
        return (
            self.plan.widths(fractions_of(trial, self.plan), budget_of(trial)) if widths is None else widths
        )

    def _decide(self, number: int, rung: int, metrics: Metrics, maps: str | None) -> bool:
        """Keeps the metrics; ends the trial at the top rung, and where too many others are better."""
        self._store.write(number, encode_rung(rung, metrics, maps))
        if RACED in metrics:
            self._store.stop(number)
            return False
        trial = self._store.trial(number)
        attributes, budget = TrialAttributes(trial), self.plan.budgets[budget_of(trial)]
        if rung + 1 == self.settings.rungs:
            self._store.complete(number, self._values(metrics, budget))
            return False
        if attributes.warm_start is not None or attributes.repeat_of is not None:
            return True
        others = [
            record
            for record in self.records()
            if record.number != number and len(record.rungs) > rung and record.counts
        ]
        score = score_of([metrics, *(other.rungs[rung] for other in others)])
        if score is None:
            return True
        self._store.write(number, encode_ranking(rung, score))
        others = [other for other in others if score == "map" or RACED not in other.rungs[rung]]
        points = [self._values(other.rungs[rung], other.budget, score) for other in others]
        point = self._values(metrics, budget, score)
        if is_promoted(point, points, self._directions, self.settings.rung_keep):
            return True
        self._store.stop(number)
        return False

    def _values(self, metrics: Metrics, budget: float | None, score: str = "map") -> list[float]:
        return objective_values(metrics, budget, self.settings.objectives, score)

    def _resume(self) -> None:
        """Finishes or requeues the trials that a killed driver left in flight."""
        trials = self._store.trials()
        continued = {queued.requeued_from for queued in waiting(trials)}
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            attributes = TrialAttributes(trial)
            if attributes.rungs and RACED in attributes.rungs[-1]:
                self._store.stop(trial.number)
            elif len(attributes.rungs) >= self.settings.rungs:
                metrics = attributes.rungs[self.settings.rungs - 1]
                self._store.complete(trial.number, self._values(metrics, self.plan.budgets[budget_of(trial)]))
            elif attributes.reason is not None:
                self._store.fail(trial.number)
            elif trial.number in continued or not self._store.is_sampled(trial):
                self._store.drop(trial)
            else:
                self._requeue(trial)

    def _requeue(self, trial: FrozenTrial, losses: int | None = None) -> None:
        self._store.requeue(trial, losses)
        self._first = {policy: number for policy, number in self._first.items() if number != trial.number}


def _policy(widths: Mapping[str, int]) -> Policy:
    return tuple(sorted(widths.items()))
