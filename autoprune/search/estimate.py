"""What a search will cost: the parts of its time, as measured seconds times counts, and their sums."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autoprune.search.status import duration


@dataclass(frozen=True)
class Line:
    """Seconds of some work as a function of a detector's GFLOPs: straight between what was measured.

    Beyond the cheapest and the dearest detector it is level, so that no extrapolation can be absurd.

    Attributes:
        points: (GFLOPs, seconds) of each measured detector, at least one.
    """

    points: tuple[tuple[float, float], ...]

    def __call__(self, gflops: float) -> float:
        """Seconds at so many GFLOPs."""
        costs, seconds = zip(*sorted(self.points), strict=True)
        return float(np.interp(gflops, costs, seconds))


@dataclass(frozen=True)
class TrialCosts:
    """Seconds of what a trial does, each as a function of its GFLOPs.

    Attributes:
        reconstruction: pruning, then reconstruction or BatchNorm recalibration.
        reconstructor_s: what a reconstruction needs of the dense detector, once per process and per repeat.
        training: before the first step of a rung and its warm-up.
        step: one optimizer step, with the teacher where there is one.
        image: detection on one validation image, and its fraction of COCOeval.
        probe: loss and distance of the features, below the top rung.
        latency: measuring the latency, 0 where it is not measured.
    """

    reconstruction: Line
    reconstructor_s: float
    training: Line
    step: Line
    image: Line
    probe: Line
    latency: Line

    def of_rung(self, gflops: float, rungs: Sequence[int], rung: int, images: int) -> dict[str, float]:
        """Seconds of one rung by part: ``reconstruction``, ``training``, ``evaluation``.

        Args:
            gflops: of the policy.
            rungs: recovery steps at each rung.
            rung: 0, 1, …
            images: validation images of a trial.
        """
        steps = rungs[rung] - (rungs[rung - 1] if rung else 0)
        first, top = rung == 0, rung + 1 == len(rungs)
        untrained = first and steps > 0  # its mAP decides the learning rate, so it is evaluated before, too
        evaluations = 2 if untrained else 1
        return {
            "reconstruction": self.reconstruction(gflops) + self.latency(gflops) if first else 0.0,
            "training": self.training(gflops) + steps * self.step(gflops) if steps else 0.0,
            "evaluation": evaluations * images * self.image(gflops) + (0.0 if top else self.probe(gflops)),
        }


@dataclass(frozen=True)
class Part:
    """One part of the time.

    Attributes:
        name: what people read.
        count: how often, in words, such as ``24 x 1.2 s``.
        seconds: of all workers together.
        lower: the flag that makes it less; empty where none does.
        parallel: whether workers do it side by side.
    """

    name: str
    count: str
    seconds: float
    lower: str = ""
    parallel: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a search, or what is left of it, will cost on this machine.

    Attributes:
        parts: of the time.
        rungs: trials that reach each rung, re-evaluations among them.
        trials: trials to come.
        finished: trials that the run has already.
        repeats: re-evaluations of top candidates to come, by a rehearsal: the real number depends on mAPs.
        workers: trials at once.
        device: ``cpu`` or ``cuda``.
        devices: CPU cores or GPUs that the whole search occupies.
        megabytes: size of the run directory at the end, with recovered detectors where they are checked.
        measuring_s: seconds that the estimate itself took.
        unsearched: one line where the sampler proposes nothing, or nothing for some budgets.
    """

    parts: tuple[Part, ...]
    rungs: tuple[int, ...]
    trials: int
    finished: int
    repeats: int
    workers: int
    device: str
    devices: float
    megabytes: float
    measuring_s: float
    unsearched: str | None = None

    @property
    def work_s(self) -> float:
        """Seconds of all workers together."""
        return sum(part.seconds for part in self.parts)

    @property
    def wall_s(self) -> float:
        """Seconds that the user waits: what workers do side by side is divided among as many as have work."""
        return sum(map(self._wall_s, self.parts))

    @property
    def device_hours(self) -> float:
        """GPU-hours on ``cuda``, else core-hours: all that is occupied, for the whole time."""
        return self.devices * self.wall_s / 3600

    @property
    def largest(self) -> Part:
        """The part that takes longest by the clock."""
        return max(self.parts, key=self._wall_s)

    def _wall_s(self, part: Part) -> float:
        busy = max(1, min(self.workers, self.trials + self.repeats))
        return part.seconds / (busy if part.parallel else 1)

    def advice(self) -> str:
        """One line: what dominates, and which flag lowers it."""
        part = self.largest
        fraction = f"{part.seconds / max(self.work_s, 1e-9):.0%} of the work is {part.name}"
        return f"{fraction}; {part.lower} lowers it" if part.lower else f"{fraction}; no flag lowers it"

    def summary(self) -> str:
        """One line: time, hours of devices, disk."""
        unit = "GPU-hours" if self.device == "cuda" else "core-hours"
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return (
            f"about {duration(self.wall_s)} on {workers}, {self.device_hours:.3g} {unit}, "
            f"{self.megabytes:.1f} MB of disk"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all attributes, and what follows from them."""
        derived = ("work_s", "wall_s", "device_hours")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}, "advice": self.advice()}


def times(count: float, seconds: float) -> str:
    """``24 x 1.2 s`` of how often and how long in all."""
    each = seconds / max(count, 1)
    unit = f"{1000 * each:.3g} ms" if each < 1 else f"{each:.3g} s"
    return f"{count:,.0f} x {unit}"


def add(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Adds seconds by part to ``total``."""
    for name, seconds in more.items():
        total[name] = total.get(name, 0.0) + seconds
