r"""The deployer's alternatives: the smaller sibling, a lower input size, one-shot pruning, and autoprune.

Every row of the table is a detector of one family at the GFLOPs of its smaller member, trained from fresh
weights for --steps in all, on the same images, in batches of the same size, by the same loop:

    larger          the larger detector, the only row above that cost
    smaller         the family's smaller one
    lower           the larger one, trained for --steps less --recovery-steps, then at the largest input size
                    that meets the cost for the rest
    uniform         the same, pruned by the same ratio for all groups, channels by L2 norm
    tp-taylor       the same, pruned by torch-pruning's global Taylor scores
    greedy-obs      the same, by autoprune without a search
    autoprune       the same, by `autoprune search`; the training of its proxies comes on top, and is printed

A name with -plain is trained for the rest on the detection loss alone, the others by autoprune's default
recovery, with the dense detector as teacher. The rates of the trainings from fresh weights are found alike
for both detectors: of --rates the best after --rate-steps, with seed 0; the others follow from what was lost.
Where the larger one is far from converged, a second training from a high rate gives it more than what was
lost: then --recovery-rate trains all rows so, the smaller one too.

    python scripts/bench/siblings.py --pair yolo11 --data DATA --seeds 3 --out runs/bench-siblings \
        --peer-python PYTHON_WITH_TORCH_PRUNING

Each part's result is a file in --out, so the same command resumes, a training from its last checkpoint.
`--rows ''` prints the table as it stands.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from parts import Result, guard, once
from rich.console import Console
from search import names
from siblings_pairs import PAIRS
from siblings_rows import ROWS, Work
from siblings_table import show

from autoprune import progress

AUTOPRUNE_STEPS = 1.5  # what a step with a teacher takes, of one without
SMALLER = 0.6  # what a step at the lower cost takes, of one of the larger detector
TINY = {
    "steps": 6,
    "recovery_steps": 2,
    "rates": [1e-3],
    "trials": 2,
    "rung": 1,
    "importance_images": 4,
    "taylor_images": 4,
    "seeds": 1,
}
FIRST = ("smaller", *(name for name in ROWS if name.endswith("-plain")), "autoprune", "larger")
FIRST += tuple(name for name in ROWS if name not in FIRST)
"""The rows in the order of the work: what the comparison can't do without comes first."""


class Part(NamedTuple):
    """What is done at once and kept in one file.

    Attributes:
        name: for messages.
        file: its result.
        work: what gives it.
        steps: about what it takes, in steps of the larger detector.
    """

    name: str
    file: Path
    work: Callable[[], Result]
    steps: float


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    varied = ("out", "seeds", "first_seed", "rows", "peer_python", "tiny")
    settings = {name: value for name, value in vars(given).items() if name not in varied}
    guard(given.out / given.pair / "settings.json", settings)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    pair = PAIRS[given.pair].within(given.out / given.pair)
    works = [Work(pair, given, seed) for seed in seeds]
    if given.rows:
        with progress.show(Console(stderr=True)):
            run([part for work in works for part in parts_of(work)])
    show(given.out / given.pair, given.steps)


def parts_of(work: Work) -> list[Part]:
    """All that is done for one seed, in order."""
    given = work.given
    parts = [
        Part(
            f"seed {work.seed}, pre-training",
            work.folder / "pretrained.json",
            partial(work.train, "larger", work.pretraining),
            work.pretraining + (1 + SMALLER) * given.rate_steps * len(given.rates) * (work.seed == 0),
        )
    ]
    for name in sorted(given.rows, key=FIRST.index):
        row = ROWS[name]
        if row.policy is None:
            steps = given.steps * (1.0 if name == "larger" else SMALLER)
        else:
            steps = given.recovery_steps * SMALLER * (1.0 if row.plain else AUTOPRUNE_STEPS)
        if row.policy == "autoprune":
            steps += given.trials * given.rung + 2 * given.recovery_steps  # with curves
        file = work.folder / "rows" / f"{name}.json"
        parts.append(Part(f"seed {work.seed}, {name}", file, partial(work.shipped, name), steps))
    return parts


def run(parts: Sequence[Part]) -> None:
    """Does what is not done yet, and says when the rest will be."""
    open_parts = [part for part in parts if not part.file.exists()]
    steps, started = 0.0, time.monotonic()
    for number, part in enumerate(open_parts, 1):
        result = once(part.file, partial(timed, part.work))
        steps += part.steps
        seconds = time.monotonic() - started
        left = seconds / steps * sum(other.steps for other in open_parts[number:])
        rest = f"{number} of {len(open_parts)} parts, about {left / 60:.0f} min left"
        now = time.strftime("%H:%M")
        print(f"{now} {part.name}: {brief(result)}; {rest}", file=sys.stderr, flush=True)


def timed(work: Callable[[], Result]) -> Result:
    """A result, and the seconds that it took."""
    started = time.monotonic()
    return {**work(), "seconds": round(time.monotonic() - started, 1)}


def brief(result: Result) -> str:
    """A result in a few words."""
    if "failed" in result:
        return str(result["failed"])
    scores = ", ".join(f"{n} {100 * result[n]:.1f}" for n in ("val", "test") if result[n] is not None)
    return f"{scores}, {result['gflops']:.3f} GFLOPs, {result['seconds']:.0f} s"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", choices=PAIRS, default="yolo11")
    parser.add_argument("--data", default="../shared/data/bccd")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-siblings"))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="so that machines with one --out share the seeds"
    )
    parser.add_argument("--rows", type=names, default=list(ROWS), help="separated by commas")
    parser.add_argument("--steps", type=int, default=800, help="of each row, in all")
    parser.add_argument("--recovery-steps", type=int, default=200, help="those of them after the pruning")
    parser.add_argument("--rates", type=rates, default=[1e-3, 3e-3], help="of trainings from fresh weights")
    parser.add_argument("--rate-steps", type=int, default=150)
    parser.add_argument(
        "--recovery-rate",
        type=float,
        help="of the last --recovery-steps of all rows, the whole detectors too; default: these "
        "are trained in one go, and the others at the rate of autoprune's rule",
    )
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rung", type=int, default=40, help="steps of a proxy")
    parser.add_argument("--importance-images", type=int, default=128)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--taylor-images", type=int, default=40, help="for torch-pruning's Taylor scores")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch-pruning")
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    given = parser.parse_args()
    if unknown := [name for name in given.rows if name not in ROWS]:
        parser.error(f"there is no row {unknown[0]}; choose {', '.join(ROWS)}")
    if given.tiny:
        vars(given).update(TINY)
    if not 0 < given.recovery_steps < given.steps:
        parser.error(f"--recovery-steps must be from 1 to {given.steps - 1}, below --steps")
    return given


def rates(text: str) -> list[float]:
    """Learning rates between commas."""
    return [float(rate) for rate in names(text)]


if __name__ == "__main__":
    main()
