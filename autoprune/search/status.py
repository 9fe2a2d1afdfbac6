"""What a driver shows of a running search: workers, trials by rung, the front so far, the time left."""

from collections import Counter
from collections.abc import Sequence

from autoprune.study.trials import Record

MOST_POINTS = 6  # of the front that are named


def status(records: Sequence[Record], front: Sequence[Record], trials: int, left: str) -> list[str]:
    """The lines of the board.

    Args:
        records: all trials of the study.
        front: the trials that no other beats, cheapest first.
        trials: how many are asked for.
        left: the time that the rest will take, in words.
    """
    counted = [record for record in records if record.counts]
    states = Counter(record.state for record in counted)
    working = Counter(len(record.rungs) for record in counted if record.state == "running")
    rungs = Counter(rung for record in counted for rung in range(len(record.rungs)))
    at = ", ".join(f"{count} at rung {rung}" for rung, count in sorted(working.items())) or "none at work"
    if again := sum(record.repeat_of is not None and record.state == "running" for record in records):
        at += f", {again} with leaders again"
    done = len(counted) - states["running"]
    ended = ", ".join(f"{states[name]} {name}" for name in ("complete", "stopped", "failed") if states[name])
    passed = ", ".join(f"{count} through rung {rung}" for rung, count in sorted(rungs.items()))
    lines = [
        f"workers  {at}",
        f"trials   {done} of {trials} done" + "".join(f"; {part}" for part in (ended, passed) if part),
    ]
    if front:
        lines.append(f"front    {_front(front)}")
    return [*lines, f"left     {left}" if done else "left     known after the first trial"]


def _front(front: Sequence[Record]) -> str:
    """The points of the front, or as many as there is room for, spread over it."""
    step = max(1, -(-len(front) // MOST_POINTS))
    shown = front[::-1][::step]
    points = ", ".join(_point(record) for record in shown)
    return points + (f" (of {len(front)})" if len(shown) < len(front) else "")


def _point(record: Record) -> str:
    parts = [f"mAP {100 * record.metrics['map']:.1f}", f"{record.metrics['gflops']:.2f} GFLOPs"]
    if "latency_ms" in record.metrics:
        parts.append(f"{record.metrics['latency_ms']:.1f} ms")
    return " at ".join(parts[:2]) + "".join(f", {part}" for part in parts[2:])
