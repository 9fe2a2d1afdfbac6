"""How the search scales, and what it survives. Sleeping evaluators stand for the work of a GPU.

    python scripts/bench/scale.py ledger                # 5,000 trials of 47 parameters
    python scripts/bench/scale.py overhead              # seconds per trial, beside Tune's own function API
    python scripts/bench/scale.py workers               # 64 logical workers
    python scripts/bench/scale.py kills --runs 20       # kill -9 of drivers and workers
    python scripts/bench/scale.py nodes                 # two nodes, one killed

Each part prints its table, and writes it as JSON where ``--json FILE`` says so.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

PARTS = ("ledger", "overhead", "workers", "kills", "nodes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--trials", type=int, help="default: what the part's table is made with")
    parser.add_argument("--runs", type=int, default=20, help="kills: how many runs")
    parser.add_argument("--workers", type=int, help="default: 2, for `workers` 64")
    parser.add_argument("--seconds", type=float, help="seconds per trial; default: 0, for `workers` 5")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    figures = _part(arguments.part)(arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def _part(name: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """The function of a part; only its own libraries are loaded."""
    if name == "ledger":
        from scale_ledger import ledger

        return ledger
    import scale_ray

    return {
        "overhead": scale_ray.overhead,
        "workers": scale_ray.workers,
        "kills": scale_ray.kills,
        "nodes": scale_ray.nodes,
    }[name]


if __name__ == "__main__":
    main()
