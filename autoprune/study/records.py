"""The trials of a study as records, which is what the rest of autoprune reads of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from autoprune.data.rivals import RACED, SAME_COST, decode_maps
from autoprune.errors import RunError
from autoprune.space.input_size import pixels_of
from autoprune.study.earlier_data import earlier_trials
from autoprune.study.pareto import Direction, front, merge
from autoprune.study.trial_attributes import TrialAttributes, budget_of
from autoprune.study.trials import Metrics

State = Literal["running", "interrupted", "complete", "stopped", "failed"]
UNFINISHED: tuple[State, ...] = ("running", "interrupted")
AVERAGED = ("map", "map50")  # over a trial and its repeats
_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Record:
    """What the ledger knows of one trial.

    Attributes:
        state: ``complete`` reached the top rung, ``stopped`` did not, ``failed`` has a ``reason``, and what
            nobody runs any more is ``interrupted``, until a driver puts it back into the queue.
        origin: the warm start's, or ``"sampler"``.
        budget: GFLOPs that it was projected onto, if any.
        widths: channels that each group keeps, and the input size where the search chooses it (`INPUT_SIZE`).
        rungs: metrics at each rung that it reached.
        prefix_maps: at each of them, the mAP on prefixes of the images as text (`data.rivals`), if kept.
        ranked_by: the metric that it was compared by at each of them, ``None`` where it was not compared.
        reason: why it failed.
        same_as: trial that had the same policy; this one was not run.
        repeat_of: trial that this one re-evaluates, with another seed.
        again: metrics at the top rung of the trials that re-evaluated this one.
        other_data: it was measured on other data than the run has now, and set aside.
    """

    number: int
    state: State
    origin: str
    budget: float | None
    widths: Mapping[str, int]
    rungs: tuple[Metrics, ...] = ()
    ranked_by: tuple[str | None, ...] = ()
    prefix_maps: tuple[str | None, ...] = ()
    reason: str | None = None
    same_as: int | None = None
    repeat_of: int | None = None
    again: tuple[Metrics, ...] = ()
    other_data: bool = False

    @property
    def pixels(self) -> int | None:
        """The shorter side that the trial resizes to; ``None`` where the search has one input size."""
        return pixels_of(self.widths)

    @property
    def failure(self) -> str:
        """At which input size, where that was searched, and why the trial failed, in words."""
        at = "" if self.pixels is None else f" at {self.pixels} px"
        return f"failed{at}: {self.reason}"

    @property
    def raced(self) -> int | None:
        """Of how many images a race stopped it; its mAP is an estimate then. ``None`` where none did."""
        images = self.rungs[-1].get(RACED) if self.rungs else None
        return None if images is None else int(images)

    @property
    def counts(self) -> bool:
        """Whether it is one of the trials asked for, on the run's data, and no repeat of another."""
        return not self.other_data and self.is_first

    @property
    def is_first(self) -> bool:
        """Whether it is the first of its policy."""
        return self.same_as is None and self.repeat_of is None

    @property
    def metrics(self) -> Metrics:
        """Metrics at the highest rung that it reached; the mAP is the mean over its repeats."""
        if not self.again:
            return self.rungs[-1] if self.rungs else {}
        measured = [self.rungs[-1], *self.again]
        means = {
            name: sum(metrics[name] for metrics in measured) / len(measured)
            for name in AVERAGED
            if name in measured[0]
        }
        return {**self.rungs[-1], **means}

    @property
    def values(self) -> Metrics:
        """`metrics` without the seconds that they took."""
        return {name: value for name, value in self.metrics.items() if not name.endswith("_s")}

    @property
    def maps(self) -> list[float]:
        """The mAP of each of its evaluations at the top rung; none if it did not get there."""
        top = [*self.rungs[-1:], *self.again] if self.state == "complete" else []
        return [metrics["map"] for metrics in top]

    def seconds(self, part: str) -> float:
        """Seconds of all rungs together spent on ``training``, ``evaluation`` or ``other``."""
        return sum(metrics.get(f"{part}_s", 0.0) for metrics in self.rungs)


def directions(objectives: Sequence[str]) -> list[Direction]:
    """Which way each objective is better: mAP up, costs down."""
    return ["maximize" if name == "map" else "minimize" for name in objectives]


def objective_values(
    metrics: Metrics, budget: float | None, objectives: Sequence[str], score: str = "map"
) -> list[float]:
    """The objectives as samplers and rungs see them.

    Candidates lie a fraction of a percent below their budget. That fraction is no merit, so their GFLOPs
    are the budget here, if there is one; the front compares the true ones.

    Args:
        metrics: of a trial at one rung.
        budget: GFLOPs that the trial was projected onto, if any.
        objectives: names of the metrics to return.
        score: the metric that stands in for the mAP; of any but ``map`` itself, less is better.
    """
    values = {**metrics, "map": metrics["map"] if score == "map" else -metrics[score]}
    if budget is not None:
        values["gflops"] = budget
    return [values[name] for name in objectives]


def read_records(study: optuna.Study, finished: dict[int, Record] | None = None) -> list[Record]:
    """All trials of a ledger's study but those that were put back into the queue, by number.

    Args:
        study: the study.
        finished: records of finished trials by number, which do not change; the missing ones are added.

    Raises:
        RunError: the study is damaged: a metric is no number, say.
    """
    budgets = study.user_attrs.get("budgets") or [None]
    finished = {} if finished is None else finished
    set_aside = earlier_trials(study.user_attrs)
    records = []
    for trial in study.get_trials(deepcopy=False):
        record = finished.get(trial.number)
        if record is None:
            attributes = TrialAttributes(trial)
            if trial.state == TrialState.WAITING or attributes.requeued:
                continue
            record = _check(_record(trial, attributes, budgets, trial.number in set_aside))
            if trial.state.is_finished():
                finished[trial.number] = record
        records.append(record)
    return _with_repeats(records)


def front_of(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The trials at the top rung that no other dominates, cheapest first.

    Costs that differ by less than `SAME_COST` are the same; of trials that are equal then, the first stays.
    """
    complete = [record for record in records if record.counts and record.state == "complete"]
    points = [[record.metrics[name] for name in objectives] for record in complete]
    merged = merge(points, directions(objectives), SAME_COST)
    best = {tuple(merged[index]): complete[index] for index in front(merged, directions(objectives))[::-1]}
    return sorted(best.values(), key=lambda record: (record.metrics.get("gflops", 0.0), record.number))


def _with_repeats(records: list[Record]) -> list[Record]:
    """The same records, each with the results of its repeats."""
    again: dict[int, list[Metrics]] = {}
    for record in records:
        if record.repeat_of is not None and record.state == "complete":
            again.setdefault(record.repeat_of, []).append(record.metrics)
    if not again:
        return records
    return [
        replace(record, again=tuple(again[record.number])) if record.number in again else record
        for record in records
    ]


def _check(record: Record) -> Record:
    """Refuses what no search writes: a damaged or edited study, which would fail far from here.

    Raises:
        RunError: names the trial and what is wrong.
    """
    for rung, (metrics, maps) in enumerate(zip(record.rungs, record.prefix_maps, strict=True)):
        wrong = [name for name, value in metrics.items() if not isinstance(value, int | float)]
        wrong = wrong or [name for name in ("map", "gflops") if not math.isfinite(metrics.get(name, 0.0))]
        if maps is not None and not _is_decoded(maps):
            wrong.append("maps")
        if wrong:
            raise RunError(
                f"the study is damaged: trial {record.number} has no valid {wrong[0]} at rung {rung}; "
                "restore it (study.journal) from a copy, or choose another --out"
            )
    return record


def _is_decoded(maps: str) -> bool:
    try:
        return len(decode_maps(maps)) > 0
    except (TypeError, ValueError):
        return False


def _record(
    trial: FrozenTrial, attributes: TrialAttributes, budgets: Sequence[float | None], other_data: bool
) -> Record:
    return Record(
        number=trial.number,
        state=_STATES.get(trial.state, "running"),
        origin=attributes.origin,
        budget=budgets[budget_of(trial)],
        widths=attributes.widths or {},
        rungs=attributes.rungs,
        ranked_by=attributes.ranked_by,
        prefix_maps=attributes.maps,
        reason=attributes.reason,
        same_as=attributes.same_as,
        repeat_of=attributes.repeat_of,
        other_data=other_data,
    )
