"""What a search for RetinaNet-R50 on COCO costs on several GPUs, on paper: published speeds times counts.

    python scripts/bench/scale_paper.py --gpus 8 --trials 64

No GPU was measured. Speeds of the dense detector are those of detectron2's model zoo on V100 GPUs in float32;
those of pruned ones follow from their GFLOPs, as if time were proportional to them. The arithmetic is that of
`autoprune search --dry-run`, which measures its parts instead.
"""

import argparse

from rich.console import Console
from rich.table import Table

from autoprune.search.estimate import Estimate, Line, Part, TrialCosts, add, times

DENSE = 151.54  # GFLOPs at 800 x 800, as torchvision counts them
TRAIN_IMAGE_S = 0.200 * 8 / 16  # detectron2: 0.200 s an iteration of 16 images on 8 GPUs
IMAGE_S = 0.055  # detectron2: inference at batch 1
FORWARD = 1 / 3  # of a training step: the backward pass costs two forward ones
LEAST_SQUARES_S = 30.0  # assumed: solving all layers of one policy
ELIMINATION_S = 300.0  # assumed: the eliminations of the criterion `obs`
POINTS, POINT_S = 300, 5.0  # assumed: of sensitivity curves, 60 groups at 5 widths
HARNESS_S = 0.018  # measured: `overhead` of scripts/bench/scale.py
COCOEVAL_S = 0.62 / 5000  # measured: scripts/bench/evaluation.py, an image
LOADING_S = 120.0  # assumed: reading the annotations, building the detector
IMPORTANCE_IMAGES, RECONSTRUCT_IMAGES, PROBE_IMAGES = 128, 32, 32
WARM_STARTS = 8


def costs(batch: int) -> TrialCosts:
    """Seconds of what a trial does on one GPU."""

    def line(dense_s: float, fixed_s: float = 0.0) -> Line:
        return Line(((0.0, fixed_s), (DENSE, fixed_s + dense_s)))

    forward_s = FORWARD * TRAIN_IMAGE_S
    teacher_s = batch * forward_s
    return TrialCosts(
        reconstruction=line(RECONSTRUCT_IMAGES * forward_s, LEAST_SQUARES_S),
        reconstructor_s=RECONSTRUCT_IMAGES * forward_s,
        training=line(0.0, 2.0),
        step=line(batch * TRAIN_IMAGE_S, teacher_s),
        image=line(IMAGE_S, COCOEVAL_S),
        probe=line(PROBE_IMAGES * forward_s),
        latency=line(0.0),
    )


def main() -> None:
    """Prints the parts and their sum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500, help="of the second rung; the first has none")
    parser.add_argument("--images", type=int, default=2000, help="validation images of a trial")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--fraction", type=float, default=0.5, help="of the GFLOPs that trials have")
    parser.add_argument("--confirm", type=int, default=4)
    parser.add_argument(
        "--recover", type=int, default=22_500, help="steps of the final recovery, in batches of 16"
    )
    options = parser.parse_args()
    each, gflops, rungs = costs(options.batch), options.fraction * DENSE, (0, options.steps)
    first, second = (each.of_rung(gflops, rungs, rung, options.images) for rung in (0, 1))
    promoted = WARM_STARTS + (options.trials - WARM_STARTS) // 2
    trials: dict[str, float] = {}
    again: dict[str, float] = {}
    for _ in range(options.trials):
        add(trials, first)
    for _ in range(promoted):
        add(trials, second)
    for _ in range(options.confirm):
        add(again, first)
        add(again, second)
    importance_s = ELIMINATION_S + 3 * IMPORTANCE_IMAGES * TRAIN_IMAGE_S
    dense_s = options.images * (IMAGE_S + COCOEVAL_S)
    recovery_s = options.recover * 2 * each.step(gflops)
    parts = (
        Part("loading", "", LOADING_S),
        Part("importance", times(IMPORTANCE_IMAGES, importance_s), importance_s),
        Part("curves", times(POINTS, POINTS * POINT_S), POINTS * POINT_S, parallel=True),
        Part("dense detector", times(options.images, dense_s), dense_s),
        Part(
            "reconstruction",
            times(options.trials, trials["reconstruction"]),
            trials["reconstruction"],
            "",
            True,
        ),
        Part("training", times(promoted * options.steps, trials["training"]), trials["training"], "", True),
        Part(
            "evaluation",
            times((options.trials + promoted) * options.images, trials["evaluation"]),
            trials["evaluation"],
            "",
            True,
        ),
        Part("re-evaluation", times(options.confirm, sum(again.values())), sum(again.values()), "", True),
        Part("harness", times(options.trials, options.trials * HARNESS_S), options.trials * HARNESS_S),
    )
    estimate = Estimate(
        parts=parts,
        rungs=(options.trials, promoted),
        trials=options.trials,
        finished=0,
        repeats=options.confirm,
        workers=options.gpus,
        device="cuda",
        devices=float(options.gpus),
        megabytes=0.0,
        measuring_s=0.0,
    )
    table = Table("part", "work", "GPU-hours")
    for part in parts:
        table.add_row(part.name, part.count, f"{part.seconds / 3600:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(
        f"search: {estimate.work_s / 3600:.1f} GPU-hours of work, {estimate.wall_s / 3600:.2f} h on "
        f"{options.gpus} GPUs, {estimate.device_hours:.1f} GPU-hours occupied"
    )
    console.print(
        f"then a recovery of {options.recover} steps of 16 images on {options.gpus} GPUs: "
        f"{recovery_s / 3600:.1f} GPU-hours, {recovery_s / options.gpus / 3600:.1f} h"
    )


if __name__ == "__main__":
    main()
