r"""What it saves that the workers of a node keep decoded images together: memory and decoding.

    python scripts/bench/node_images.py --workers 4
    python scripts/bench/node_images.py --data DATA --min-size 600 --max-size 800

Each of the workers, processes as those of a search with Ray on one node, takes all training images three
times, once with images of its own and once with those of all. CPU seconds are sums over the workers. Memory
is what they have more after than before, where pages that several have count in parts (PSS).
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from parts import demo_settings

from autoprune.data.coco import open_data
from autoprune.detectors import Resize

CONTEXT = multiprocessing.get_context("fork")


def main() -> None:
    """Runs the workers twice and prints a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="default: generated images")
    parser.add_argument("--min-size", type=int, default=600)
    parser.add_argument("--max-size", type=int, default=800)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or Path(demo_settings(Path(folder))["data"])
        resize = Resize(given.min_size, given.max_size)
        rows = {scope: measure(data, resize, scope, given.workers) for scope in (None, folder)}
    (decoding, alone), (decoding_once, together) = rows.values()
    print(f"memory: ratio {alone / together:.1f}, {alone:.0f} MB each for itself, {together:.0f} MB together")
    print(f"decoding: ratio {decoding / decoding_once:.1f}, {decoding:.1f} CPU s, {decoding_once:.1f} CPU s")


def measure(data: Path, resize: Resize, scope: str | None, workers: int) -> tuple[float, float]:
    """CPU seconds of the first pass, and megabytes, over all workers."""
    barrier, results = CONTEXT.Barrier(workers), CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=work, args=(data, resize, scope, k / workers, barrier, results))
        for k in range(workers)
    ]
    for process in processes:
        process.start()
    each = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(seconds for seconds, _ in each), sum(megabytes for _, megabytes in each)


def work(data: Path, resize: Resize, scope: str | None, start: float, barrier: Any, results: Any) -> None:
    """One worker: takes all images in its own order."""
    split = open_data(data, "train", resize, scope=scope)
    count = len(split)
    order = [(index + int(start * count)) % count for index in range(count)]
    barrier.wait()
    before, seconds = megabytes(), time.process_time()
    for index in order:
        split.get(index)
    seconds = time.process_time() - seconds
    for index in order * 2:
        split.get(index)[0].sum()
    barrier.wait()
    after = megabytes()
    barrier.wait()
    results.put((seconds, after - before))


def megabytes() -> float:
    """Memory of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
