"""Trials that were measured on other data than the run has now: kept and shown, compared with none.

`search --accept-data-change` sets them aside. The study's attribute `EARLIER` lists them, for each change of
the data: ``trials`` (numbers), ``dense`` (the dense detector's metrics there), ``data`` (images and boxes).
"""

from collections.abc import Container, Mapping
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

EARLIER = "earlier_data"
_PARENTS = ":parent:"  # in the names under which Optuna's genetic samplers cache the parents of a generation


class CurrentStudy(optuna.Study):
    """A study that shows none of the trials that were set aside, neither to its samplers nor to the ledger.

    Args:
        name: the study's name.
        storage: where it lies.
    """

    def __init__(self, name: str, storage: BaseStorage) -> None:
        super().__init__(name, storage)
        self.set_aside = earlier_trials(self.user_attrs)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """What all of Optuna reads trials by, as in its own `HyperbandPruner`."""
        trials = super()._get_trials(deepcopy, states, use_cache)
        return [trial for trial in trials if trial.number not in self.set_aside] if self.set_aside else trials

    def set_all_aside(self) -> None:
        """Sets all trials aside that are finished, with the dense detector's metrics.

        A kill in between leaves a study that the same call completes.
        """
        notes = self.user_attrs
        numbers = [trial.number for trial in self.get_trials(deepcopy=False)]
        if numbers:
            change = {"trials": numbers, "dense": notes.get("dense", {}), "data": notes.get("data", {})}
            self.set_user_attr(EARLIER, [*notes.get(EARLIER, []), change])
        self.set_user_attr("dense", {})
        for name in self._storage.get_study_system_attrs(self._study_id):
            if _PARENTS in name:
                self._storage.set_study_system_attr(self._study_id, name, None)
        self.set_aside = earlier_trials(self.user_attrs)


def earlier_trials(notes: Mapping[str, Any]) -> frozenset[int]:
    """Numbers of the trials that were set aside, by the attributes of their study."""
    changes: list[dict[str, Any]] = notes.get(EARLIER, [])
    return frozenset(number for change in changes for number in change["trials"])
