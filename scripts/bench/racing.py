r"""How many images racing saves, and whether it changes the winner: searches simulated from kept detections.

A search's policies are evaluated once on all validation images, and the detections kept; then --searches
searches are simulated, each with its own order of the trials and of the images, through the code that decides
in a search.
Without --data it is the demo's detector on generated images. What was stopped is resumed.

    python scripts/bench/racing.py --out runs/bench-racing
    python scripts/bench/racing.py --data ../shared/data/bccd \
        --weights ../shared/models/retinanet_resnet18_bccd.safetensors \
        --model-arguments '{"min_size": 192, "max_size": 256}' --out runs/bench-racing-bccd
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from parts import add_demo_or_data, once
from racing_detections import Kept, keep_detections

from autoprune.data.coco import Split
from autoprune.data.evaluate import score_detections
from autoprune.data.evaluators import IMAGE, Detections
from autoprune.data.racing import RaceOrder
from autoprune.data.rivals import rival_of
from autoprune.study.records import Record
from autoprune.study.rivals import rivals
from autoprune.study.trials import LedgerSettings
from autoprune.task.race import race

BATCH = 8


def main() -> None:
    """Simulates, and prints the two figures."""
    given = arguments()
    config, split, kept = keep_detections(given)
    settings = LedgerSettings.from_config(config.model_copy(update={"racing": True}))
    maps = once(given.out / "maps.json", lambda: {"maps": full_maps(split, kept)})["maps"]
    results = [
        once(given.out / f"search-{seed:03d}.json", partial(simulate, split, kept, maps, settings, seed))
        for seed in range(given.searches)
    ]
    ordered = sorted(maps, reverse=True)
    shown = ", ".join(f"{100 * value:.1f}" for value in ordered[:5])
    print(f"{len(kept)} trials on {len(split)} images, mAP {shown} … {100 * ordered[-1]:.1f}")
    same = np.mean([result["winner"] == result["winner_in_full"] for result in results])
    lost = max(maps[result["winner_in_full"]] - maps[result["winner"]] for result in results)
    print(
        f"the same winner in {100 * same:.0f}% of {len(results)} searches; at most {100 * lost:.2f} mAP lost"
    )
    stopped = np.mean([result["stopped"] for result in results])
    fraction = np.mean([result["fraction"] for result in results])
    print(f"{100 * fraction:.0f}% of the images evaluated, {stopped:.1f} trials stopped")


def full_maps(split: Split, kept: Sequence[Kept]) -> list[float]:
    """The mAP of each trial on all images."""
    return [score_detections(split, range(len(split)), trial.detections[-1]).map for trial in kept]


def simulate(
    split: Split, kept: Sequence[Kept], maps: Sequence[float], settings: LedgerSettings, seed: int
) -> dict[str, Any]:
    """One search at the top rung: the trials in a random order, each against those before it."""
    order = RaceOrder.make(len(split), BATCH, seed)
    assert order is not None
    records: list[Record] = []
    seen, budget = 0, max(trial.gflops for trial in kept)
    trials = np.random.default_rng([seed, 1]).permutation(len(kept)).tolist()
    for number in trials:
        costs = {"gflops": kept[number].gflops}
        top = rivals(records, budget, settings, promoted=True)[-1]
        detections = kept[number].detections[-1]
        raced = race(partial(of_images, split, detections), split, order, rival_of(costs, top))
        seen += raced.images
        if raced.maps is not None:
            metrics = {"map": raced.map, **costs}
            record = Record(number, "complete", kept[number].origin, budget, {}, (metrics,) * settings.rungs)
            records.append(replace(record, prefix_maps=(raced.maps,) * settings.rungs))
    complete = [record.number for record in records]
    return {
        "winner": max(complete, key=lambda number: maps[number]),
        "winner_in_full": int(np.argmax(maps)),
        "fraction": seen / (len(kept) * len(split)),
        "stopped": len(kept) - len(complete),
    }


def of_images(split: Split, detections: Detections, images: Sequence[int]) -> Detections:
    """The detections on some images."""
    ids = [split.image_ids[index] for index in images]
    return detections[np.isin(detections[:, IMAGE], ids)]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--images", type=int, default=2000, help="generated ones to validate on")
    parser.add_argument("--budget", default="33%")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--rungs", type=int, nargs="+", default=[0])
    parser.add_argument("--searches", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
