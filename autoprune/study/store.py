"""What the ledger stores: the trials of one Optuna study. It decides nothing.

What makes a search survive `kill -9` at any moment is here: a trial in flight is RUNNING in the study;
the next driver puts it back into the queue with the same parameters. A finished trial is never run again.
"""

import warnings
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import RunError
from autoprune.study.earlier_data import CurrentStudy
from autoprune.study.lease import Lease
from autoprune.study.records import Record, directions, read_records
from autoprune.study.storage import batch, name_objectives, open_study, shown
from autoprune.study.trial_attributes import (
    Encoded,
    TrialAttributes,
    distributions,
    encode,
    encode_parameters,
    inherited,
)
from autoprune.study.trials import Plan

FORMAT = 2  # raise it when older studies must not be continued


class TrialStore:
    """The trials of one search, for one driver at a time.

    Args:
        storage: path of a journal file, or any Optuna storage URL.
        name: the study's name in the storage.
        plan: space and budgets.
        objectives: what the search trades off.
        accepts: parts of the plan's identity that may have changed; then all trials are set aside.

    Raises:
        RunError: the storage can't be opened, the study is of another search, or another driver uses it.
    """

    def __init__(
        self,
        storage: Path | str,
        name: str,
        plan: Plan,
        objectives: Sequence[str],
        accepts: Collection[str] = (),
    ) -> None:
        self._whole, self._storage = open_study(storage, name, directions(objectives))
        self.study = CurrentStudy(name, self._storage)
        self._plan, self._distributions = plan, distributions(plan)
        self._finished: dict[int, Record] = {}
        place = f"the study {name} in {shown(storage)}"
        changed = self._check_identity(place, accepts)
        # Before anything is written. A journal file lies in a run directory, whose lock keeps others out.
        self._lease = Lease(self.study, place) if isinstance(storage, str) else None
        try:
            if changed:
                self._set_aside()
            self._note_identity()
            name_objectives(self.study, objectives)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Lets another driver in; nothing may be written after it."""
        if self._lease is not None:
            self._lease.release()

    def batch(self) -> AbstractContextManager[None]:
        """What is written inside the block reaches a journal in one piece.

        Raises:
            RunError: another driver has taken the study over.
        """
        if self._lease is not None:
            self._lease.check()
        return batch(self._storage)

    # read

    def trials(self) -> list[FrozenTrial]:
        """All trials on the run's data, by number; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """One trial."""
        return self._whole.get_trials(deepcopy=False)[number]

    def records(self) -> list[Record]:
        """All trials but those put back into the queue, by number; also those that are set aside."""
        return read_records(self._whole, self._finished)

    def is_sampled(self, trial: FrozenTrial) -> bool:
        """Whether all parameters of a trial are known; a driver may be killed before they are."""
        return set(trial.params) == set(self._distributions)

    # write

    def ask(self, sampler: BaseSampler) -> FrozenTrial:
        """A RUNNING trial with all parameters, from the queue, or else from the sampler."""
        self.study.sampler = sampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self.trial(self.study.ask(self._distributions).number)

    def enqueue(self, fractions: Sequence[float], budget: int, attributes: Encoded) -> None:
        """Puts a trial into the queue."""
        self.study.enqueue_trial(encode_parameters(self._plan, fractions, budget), user_attrs=attributes)

    def enqueue_repeat(self, record: Record) -> None:
        """Puts a trial into the queue that re-evaluates another one."""
        attributes = encode(origin=record.origin, widths=record.widths, repeat_of=record.number)
        self.study.enqueue_trial(self.trial(record.number).params, user_attrs=attributes)

    def write(self, number: int, attributes: Encoded) -> None:
        """Writes attributes of a trial, which an earlier driver may have asked for."""
        for name, value in attributes.items():
            self._storage.set_trial_user_attr(self.trial(number)._trial_id, name, value)

    def complete(self, number: int, values: Sequence[float]) -> None:
        """Ends a trial at the top rung with the values of its objectives."""
        self.study.tell(number, list(values))

    def stop(self, number: int) -> None:
        """Ends a trial below the top rung."""
        self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, attributes: Encoded | None = None) -> None:
        """Ends a trial that can't be evaluated, with attributes that say more."""
        with self.batch():
            self.write(number, attributes or {})
            self.study.tell(number, state=TrialState.FAIL)

    def copy_result(self, number: int, earlier: int) -> None:
        """Ends a trial with the result of the trial that had the same policy."""
        first = self.trial(earlier)
        with self.batch():
            self.write(number, encode(same_as=earlier))
            if first.state == TrialState.COMPLETE:
                self.complete(number, first.values)
            elif first.state == TrialState.PRUNED:
                self.stop(number)
            else:
                self.fail(number)

    def requeue(self, trial: FrozenTrial, losses: int | None = None) -> None:
        """Queues the trial again, then drops it: in this order a kill in between loses nothing."""
        attributes = {**inherited(trial), **encode(requeued_from=trial.number, losses=losses)}
        with self.batch():
            self.study.enqueue_trial(trial.params, user_attrs=attributes)
            self.drop(trial)

    def drop(self, trial: FrozenTrial) -> None:
        """Ends a trial that another one continues."""
        self.fail(trial.number, encode(requeued=True))

    # what is kept about the run as a whole

    @property
    def notes(self) -> dict[str, Any]:
        """What was kept about the run, such as the dense detector's metrics."""
        return dict(self.study.user_attrs)

    def note(self, name: str, value: Any) -> None:
        """Keeps something about the run; any JSON value."""
        self.study.set_user_attr(name, value)

    def _set_aside(self) -> None:
        """Ends what is in flight or queued, which was proposed for other data, and sets all trials aside."""
        with self.batch():
            for trial in self.trials():
                if trial.state == TrialState.WAITING:  # no trial ends that did not start
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                if not trial.state.is_finished():
                    self.drop(trial)
            self.study.set_all_aside()

    @property
    def _identity(self) -> dict[str, str]:
        """What the study has to be about."""
        names = ", ".join(self._plan.variables)
        return {"format": str(FORMAT), **self._plan.identity, "variables": names}

    def _check_identity(self, place: str, accepts: Collection[str]) -> list[str]:
        """Refuses a study of another search; returns the parts of its identity that changed and may have.

        Raises:
            RunError: it is of another search, or of another version of autoprune.
        """
        stored, expected = self.study.user_attrs.get("identity"), self._identity
        if stored is None and not self.trials():
            return []
        known = {**expected, "format": None, **stored} if stored else {}  # an earlier version recorded less
        changed = [name for name in expected if known.get(name) != expected[name]]
        differing = [name for name in changed if name not in accepts]
        if "format" in differing:
            raise RunError(
                f"{place} was made by another version of autoprune (its format is "
                f"{(stored or {}).get('format')}, this one's {FORMAT}); continue it with that version, or "
                "choose another --out"
            )
        if differing:
            raise RunError(
                f"{place} is of another search: it differs in its {differing[0]}; restore that, or "
                "choose another --out"
            )
        return changed

    def _note_identity(self) -> None:
        """Writes what the study is about, where it does not say so yet; a kill in between loses nothing."""
        notes = self.notes
        if "budgets" not in notes and not self.trials():
            self.note("budgets", list(self._plan.budgets))
        if (identity := {**notes.get("identity", {}), **self._identity}) != notes.get("identity"):
            self.note("identity", identity)


def waiting(trials: Sequence[FrozenTrial]) -> list[TrialAttributes]:
    """The attributes of the trials in the queue."""
    return [TrialAttributes(trial) for trial in trials if trial.state == TrialState.WAITING]
