"""The ledger: one Optuna study that holds all a search knows. Engines ask it for work and report to it.

What makes a search survive `kill -9` at any moment is here: a trial in flight is RUNNING in the study;
the next driver puts it back into the queue with the same parameters. A finished trial is never run again.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import RunError
from autoprune.seeding import seed as derive
from autoprune.study.confirm import next_to_confirm
from autoprune.study.lease import Lease
from autoprune.study.rungs import is_promoted, score_of
from autoprune.study.samplers import make_sampler
from autoprune.study.storage import batch, directions, front_of, open_study, read_records
from autoprune.study.trials import Candidate, LedgerSettings, Metrics, Plan, Record

FORMAT = 2  # raise it when older studies must not be continued
MOST_KNOWN = 200  # asks in a row that give known policies, after which the space counts as exhausted
MOST_LOSSES = 3  # workers that a policy may take down with it


class Ledger:
    """Proposes trials, decides at rungs, and keeps the results.

    Args:
        storage: path of a journal file, or any Optuna storage URL.
        name: the study's name in the storage.
        plan: space and budgets.
        settings: how the search goes.

    Attributes:
        exhausted: the space has no policy left that was not tried.

    Raises:
        RunError: the storage can't be opened, the study is of another search, or another driver is at it.
    """

    def __init__(self, storage: Path | str, name: str, plan: Plan, settings: LedgerSettings) -> None:
        """Opens the study and takes up what an earlier driver left."""
        self.plan, self.settings, self.exhausted = plan, settings, False
        self._directions = directions(settings.objectives)
        self.study, self._storage = open_study(storage, name, self._directions)
        where = f"the study {name} in {storage}"
        self._check_identity(where)
        # A journal file lies in a run directory, whose lock keeps others out.
        self._lease = Lease(self.study, where) if isinstance(storage, str) else None
        self._distributions: dict[str, BaseDistribution] = {
            name: FloatDistribution(0.0, 1.0) for name in plan.variables
        }
        if len(plan.budgets) > 1:
            self._distributions["budget"] = CategoricalDistribution(list(range(len(plan.budgets))))
        self._known: dict[tuple[tuple[str, int], ...], int] = {}
        self._finished: dict[int, Record] = {}
        self._resume()
        for record in self.records():
            if record.counts:
                self._known.setdefault(_key(record.widths), record.number)

    def release(self) -> None:
        """Lets another driver in; nothing may be written after it."""
        if self._lease is not None:
            self._lease.release()

    # engines call these

    def ask(self) -> Candidate | None:
        """The next trial to run; ``None`` while all that are asked for are finished or in flight.

        After these, the leaders are measured again, so that none leads by luck (`repeats.next_repeat`).
        """
        for _ in range(MOST_KNOWN):
            if self._enough and not self._repeats_wait() and not self._enqueue_repeat():
                return None
            with batch(self._storage):
                trial = self._next()
                widths = self._widths(trial)
                self._set(trial.number, "widths", widths)
            repeats = "repeat_of" in trial.user_attrs
            earlier = trial.number if repeats else self._known.setdefault(_key(widths), trial.number)
            if earlier == trial.number:
                origin = trial.user_attrs.get("origin", "sampler")
                return Candidate(trial.number, origin, widths, self.plan.keep(widths), repeat=int(repeats))
            self._copy_result(trial.number, earlier)
        self.exhausted = True
        return self.ask()

    def report(self, number: int, rung: int, metrics: Metrics) -> bool:
        """Takes a trial's metrics at a rung and says whether it goes on; else it is finished.

        Args:
            number: the trial.
            rung: 0, 1, …
            metrics: all objectives; times end in ``_s``.
        """
        missing = [
            name for name in self.settings.objectives if not math.isfinite(metrics.get(name, math.nan))
        ]
        if missing:
            self.fail(number, f"{missing[0]} is not a number at rung {rung}")
            return False
        with batch(self._storage):
            return self._decide(number, rung, metrics)

    def fail(self, number: int, reason: str) -> None:
        """Ends a trial that can't be done; it counts as one of the trials asked for."""
        with batch(self._storage):
            self._set(number, "reason", reason)
            self.study.tell(number, state=TrialState.FAIL)

    def requeue_lost(self, number: int, reason: str, counts: bool = True) -> None:
        """Puts a trial whose worker was lost back into the queue, a few times at most if that ``counts``."""
        losses = self._trial(number).user_attrs.get("losses", 0) + counts
        if losses >= MOST_LOSSES:
            self.fail(number, f"{losses} workers were lost with it, at last: {reason}")
            return
        self._requeue(self._trial(number), losses=losses)

    # readers call these

    @property
    def done(self) -> bool:
        """Whether no trial is left to run or in flight."""
        running = any(trial.state == TrialState.RUNNING for trial in self._trials())
        return self._enough and not running and not self._repeats_wait() and self._next_to_confirm() is None

    def records(self) -> list[Record]:
        """All trials but those that were put back into the queue, by number."""
        return read_records(self.study, self._finished)

    def finished(self) -> list[Record]:
        """The trials that count: run to their end, with no policy twice."""
        return [record for record in self.records() if record.counts and record.state != "running"]

    def front(self) -> list[Record]:
        """The trials at the top rung that no other beats in all objectives, cheapest first."""
        return front_of(self.records(), self.settings.objectives)

    @property
    def notes(self) -> dict[str, Any]:
        """What was kept about the run as a whole, such as the dense detector's metrics."""
        return dict(self.study.user_attrs)

    def note(self, name: str, value: Any) -> None:
        """Keeps something about the run as a whole; any JSON value."""
        self.study.set_user_attr(name, value)

    # the study

    @property
    def _enough(self) -> bool:
        """Whether all policies that are asked for have a trial."""
        return self.exhausted or sum(map(_counts, self._trials())) >= self.settings.trials

    def _repeats_wait(self) -> bool:
        return any(
            trial.state == TrialState.WAITING and "repeat_of" in trial.user_attrs for trial in self._trials()
        )

    def _next_to_confirm(self) -> Record | None:
        """The leader to measure again; unknown while a trial that could lead is in flight."""
        most = self.settings.confirm * len(self.plan.budgets)
        if not most or any(t.state == TrialState.RUNNING and _counts(t) for t in self._trials()):
            return None  # found out before all records are read: engines with idle workers ask often
        return next_to_confirm(self.records(), self.settings.objectives, most)

    def _enqueue_repeat(self) -> bool:
        """Puts the leader into the queue again; whether there is one to measure again."""
        if (leader := self._next_to_confirm()) is None:
            return False
        attributes = {"origin": leader.origin, "widths": dict(leader.widths), "repeat_of": leader.number}
        self.study.enqueue_trial(self._trial(leader.number).params, user_attrs=attributes)
        return True

    def _next(self) -> FrozenTrial:
        """A RUNNING trial with all parameters: from the queue, a warm start, or the sampler."""
        trials = self._trials()
        live = [trial for trial in trials if not trial.user_attrs.get("requeued")]
        if not any(trial.state == TrialState.WAITING for trial in live):
            started = {trial.user_attrs.get("warm_start") for trial in live}
            left = [index for index in range(len(self.plan.warm_starts)) if index not in started]
            if left:
                self._enqueue_warm_start(left[0])
        scope = derive(self.settings.seed, "trial", len(live))
        self.study.sampler = make_sampler(
            self.settings.sampler,
            scope,
            derive(self.settings.seed, "sampler"),
            self.settings.parallel,
            self.plan,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._trial(self.study.ask(self._distributions).number)

    def _enqueue_warm_start(self, index: int) -> None:
        start = self.plan.warm_starts[index]
        parameters: dict[str, Any] = dict(zip(self.plan.variables, start.fractions, strict=True))
        if "budget" in self._distributions:
            parameters["budget"] = start.budget
        attributes: dict[str, Any] = {"origin": start.origin, "warm_start": index}
        if start.widths is not None:
            attributes["widths"] = dict(start.widths)
        self.study.enqueue_trial(parameters, user_attrs=attributes)

    def _decide(self, number: int, rung: int, metrics: Metrics) -> bool:
        """Keeps the metrics; ends the trial at the top rung, and where too many others are better."""
        self._set(number, f"rung_{rung}", dict(metrics))
        trial = self._trial(number)
        point = self._values(trial, metrics)
        if rung + 1 == self.settings.rungs:
            self.study.tell(number, point)
            return False
        if "warm_start" in trial.user_attrs or "repeat_of" in trial.user_attrs:
            return True
        others = [
            other
            for other in self._trials()
            if other.number != number and f"rung_{rung}" in other.user_attrs and _counts(other)
        ]
        seen = [other.user_attrs[f"rung_{rung}"] for other in others]
        score = score_of([metrics, *seen])
        if score is None:
            return True
        self._set(number, f"ranked_by_{rung}", score)
        points = [self._values(other, found, score) for other, found in zip(others, seen, strict=True)]
        point = self._values(trial, metrics, score)
        if is_promoted(point, points, self._directions, self.settings.rung_keep):
            return True
        self.study.tell(number, state=TrialState.PRUNED)
        return False

    def _widths(self, trial: FrozenTrial) -> dict[str, int]:
        if "widths" in trial.user_attrs:
            return dict(trial.user_attrs["widths"])
        fractions = np.array([trial.params[name] for name in self.plan.variables])
        return self.plan.widths(fractions, trial.params.get("budget", 0))

    def _copy_result(self, number: int, earlier: int) -> None:
        """Ends a trial with the results of the trial that had the same policy."""
        first = self._trial(earlier)
        with batch(self._storage):
            self._set(number, "same_as", earlier)
            if first.state == TrialState.COMPLETE:
                self.study.tell(number, list(first.values))
            else:
                pruned = first.state == TrialState.PRUNED
                self.study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def _resume(self) -> None:
        """Finishes or requeues the trials that a killed driver left in flight."""
        waiting = {
            trial.user_attrs.get("requeued_from")
            for trial in self._trials()
            if trial.state == TrialState.WAITING
        }
        top = f"rung_{self.settings.rungs - 1}"
        for trial in self._trials():
            if trial.state != TrialState.RUNNING:
                continue
            if top in trial.user_attrs:
                self.study.tell(trial.number, self._values(trial, trial.user_attrs[top]))
            elif "reason" in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif trial.number in waiting or set(trial.params) != set(self._distributions):
                self._drop(trial)
            else:
                self._requeue(trial)

    def _requeue(self, trial: FrozenTrial, **attributes: Any) -> None:
        """Queues the trial's parameters anew, then drops it: in this order nothing can be lost between."""
        kept = ("origin", "warm_start", "widths", "losses", "repeat_of")
        attributes = {name: trial.user_attrs[name] for name in kept if name in trial.user_attrs} | attributes
        with batch(self._storage):
            self.study.enqueue_trial(trial.params, user_attrs={**attributes, "requeued_from": trial.number})
            self._drop(trial)
        self._known = {key: number for key, number in self._known.items() if number != trial.number}

    def _drop(self, trial: FrozenTrial) -> None:
        self._set(trial.number, "requeued", True)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _values(self, trial: FrozenTrial, metrics: Metrics, score: str = "map") -> list[float]:
        """The objectives as the sampler and the rungs see them; ``score`` stands in for the mAP.

        Candidates lie a fraction of a per cent below their budget. That fraction is no merit, so their
        GFLOPs are the budget here, as far as GFLOPs have one; the front compares the true ones.
        """
        target = self.plan.budgets[trial.params.get("budget", 0)] if self.plan.budgets else None
        known = {**metrics, "map": metrics["map"] if score == "map" else -metrics[score]}
        if target is not None:
            known["gflops"] = target
        return [known[name] for name in self.settings.objectives]

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _trial(self, number: int) -> FrozenTrial:
        return self._trials()[number]

    def _set(self, number: int, name: str, value: Any) -> None:
        """Writes an attribute of a trial that this process need not have asked for."""
        self._storage.set_trial_user_attr(self._trial(number)._trial_id, name, value)

    def _check_identity(self, where: str) -> None:
        identity = {"format": str(FORMAT), **self.plan.identity, "variables": ", ".join(self.plan.variables)}
        found = self.study.user_attrs.get("identity")
        if found is None and not self._trials():
            self.note("identity", identity)
            self.note("budgets", list(self.plan.budgets))
            return
        differing = [name for name in identity if (found or {}).get(name) != identity[name]]
        if "format" in differing:
            raise RunError(
                f"{where} was made by another version of autoprune (its format is "
                f"{(found or {}).get('format')}, this one's {FORMAT}); go on with that version, or choose "
                "another --out"
            )
        if differing:
            raise RunError(f"{where} is of another search: its {differing[0]} differs; choose another --out")


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those asked for: finished or in flight, and no repetition."""
    attributes = trial.user_attrs
    dropped = attributes.get("requeued") or "same_as" in attributes or "repeat_of" in attributes
    return trial.state != TrialState.WAITING and not dropped


def _key(widths: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(widths.items()))
