"""What a driver prints of a running search: its status and a line per trial, as functions of records."""

from collections import Counter
from collections.abc import Mapping, Sequence

from autoprune.search.wall_time import PARTS
from autoprune.study.records import Record

MOST_POINTS = 6  # of the front that are named


def status(records: Sequence[Record], front: Sequence[Record], trials: int, remaining: str) -> list[str]:
    """The lines of the status display.

    Args:
        records: all trials of the study.
        front: the trials that no other beats, cheapest first.
        trials: how many are requested.
        remaining: the time that the remaining ones will take, in words.
    """
    counted = [record for record in records if record.counts]
    states = Counter(record.state for record in counted)
    running = Counter(len(record.rungs) for record in counted if record.state == "running")
    rungs = Counter(rung for record in counted for rung in range(len(record.rungs)))
    workers = ", ".join(f"{count} at rung {rung}" for rung, count in sorted(running.items()))
    workers = workers or "none running"
    if repeats := sum(record.repeat_of is not None and record.state == "running" for record in records):
        workers += f", {repeats} re-evaluating top candidates"
    done = len(counted) - states["running"]
    ended = ", ".join(f"{states[name]} {name}" for name in ("complete", "stopped", "failed") if states[name])
    passed = ", ".join(f"{count} through rung {rung}" for rung, count in sorted(rungs.items()))
    lines = [
        f"workers  {workers}",
        f"trials   {done} of {trials} done" + "".join(f"; {part}" for part in (ended, passed) if part),
    ]
    if front:
        lines.append(f"front    {_points(front)}")
    return [*lines, f"left     {remaining}" if done else "left     known after the first trial"]


def trial_line(record: Record, finished: Sequence[Record], trials: int, remaining: str) -> str:
    """One line about a finished trial.

    Args:
        record: the trial.
        finished: all finished trials, with this one.
        trials: how many are requested.
        remaining: the time that the remaining ones will take, in words.
    """
    if record.state == "failed":
        outcome = record.failure
    else:
        outcome = f"mAP {100 * record.metrics['map']:.1f}, {record.metrics['gflops']:.2f} GFLOPs"
        if record.pixels is not None:
            outcome += f", {record.pixels} px"
    if record.raced is not None:
        outcome += (
            f" (estimated), stopped by racing at rung {len(record.rungs) - 1} after {record.raced} images"
        )
    elif record.state == "stopped":
        outcome += f", stopped at rung {len(record.rungs) - 1}"
    best = best_map(finished)
    leader = "none complete" if best is None else f"best {100 * best:.1f}"
    count = f"{len(finished):>{len(str(trials))}}/{trials}"
    return f"{count} trial {record.number} ({record.origin}): {outcome}; {leader}; {remaining} left"


def best_map(records: Sequence[Record]) -> float | None:
    """The highest mAP at the top rung, if any trial got there."""
    return max((record.metrics["map"] for record in records if record.state == "complete"), default=None)


def repeat_line(repeat: Record, finished: Sequence[Record]) -> str:
    """One line about a trial that re-evaluated another one.

    Args:
        repeat: that trial.
        finished: all finished trials, with the one that was re-evaluated.
    """
    first = next(other for other in finished if other.number == repeat.repeat_of)
    if repeat.state == "failed":
        return f"trial {first.number} again: {repeat.failure}"
    rivals = [other for other in finished if other.state == "complete" and other.budget == first.budget]
    best = max(rivals, key=lambda rival: rival.metrics["map"])
    at = "" if first.budget is None else f" at {first.budget:.2f} GFLOPs"
    return (
        f"trial {first.number} again, with another seed: mAP {100 * repeat.metrics['map']:.1f} after "
        f"{100 * first.rungs[-1]['map']:.1f}; best{at}: trial {best.number}, {100 * best.metrics['map']:.1f}"
    )


def time_line(seconds: Mapping[str, float]) -> str:
    """One line about the wall time of a search and the fractions of its parts; see `WallTime.seconds`."""
    fractions = ", ".join(
        f"{100 * seconds[name] / seconds['wall']:.1f}% {label}" for name, label in PARTS.items()
    )
    return f"search: {duration(seconds['wall'])}, of it {fractions}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _points(front: Sequence[Record]) -> str:
    """The points of the front, the dearest first; of a long one `MOST_POINTS` at even distances."""
    step = max(1, -(-len(front) // MOST_POINTS))
    shown = front[::-1][::step]
    points = ", ".join(_point(record) for record in shown)
    return points + (f" (of {len(front)})" if len(shown) < len(front) else "")


def _point(record: Record) -> str:
    point = f"mAP {100 * record.metrics['map']:.1f} at {record.metrics['gflops']:.2f} GFLOPs"
    if "latency_ms" in record.metrics:
        point += f", {record.metrics['latency_ms']:.1f} ms"
    return point
