"""Compares the estimate of `autoprune search --dry-run` with what the same search then takes.

The search is the demo's, with its settings and its generated data. On a machine with other work, CPU seconds
of this process with one thread say more than the clock: `--cpu` takes them for both figures.

    python scripts/bench/dry_run.py --threads 1 --cpu
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from autoprune.cli.demo import BUDGETS, SETTINGS, TEST_IMAGES, TRAIN_IMAGES, VAL_IMAGES
from autoprune.cli.search import estimate_lines, estimate_table
from autoprune.cli.terminal import output, show_table
from autoprune.config import Config, make_config
from autoprune.data import demo_detector
from autoprune.data.shapes import make_shapes
from autoprune.search.dry_run import dry_run
from autoprune.search.pipeline import search


def demo_search(folder: Path, threads: int | None, trials: int | None) -> Config:
    """The settings of the demo's search, its data made in ``folder``."""
    data = make_shapes(
        folder / "data",
        demo_detector.DATA_SEED,
        train=TRAIN_IMAGES,
        val=VAL_IMAGES,
        test=TEST_IMAGES,
        size=demo_detector.IMAGE_SIZE,
    )
    settings = {**SETTINGS, **({} if trials is None else {"trials": trials})}
    return make_config(
        model=demo_detector.MODEL.name,
        model_arguments=demo_detector.MODEL.arguments,
        weights=str(demo_detector.WEIGHTS),
        data=data,
        out=folder / "run",
        budget_gflops=BUDGETS,
        threads=threads,
        **settings,
    )


def main() -> None:
    """Prints the estimate, and below it how far it was off."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--trials", type=int, help="default: the demo's")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of this process instead of the clock")
    arguments = parser.parse_args()
    if arguments.cpu:
        time.perf_counter = time.process_time
    with TemporaryDirectory() as folder:
        config = demo_search(Path(folder), arguments.threads, arguments.trials)
        estimate = dry_run(config)
        show_table(output(), estimate_table(estimate))
        print(*estimate_lines(estimate), sep="\n")
        started = time.perf_counter()
        result = search(config)
        took = time.perf_counter() - started
        megabytes = sum(file.stat().st_size for file in config.out.rglob("*") if file.is_file()) / 1e6
    unit = "CPU seconds" if arguments.cpu else "s"
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items())
    print(f"\nthe search then took {took:.1f} {unit} ({parts}) and {megabytes:.2f} MB")
    print(f"estimate {estimate.wall_s:.1f} {unit}, {estimate.wall_s / took - 1:+.1%} of what it took")


if __name__ == "__main__":
    main()
