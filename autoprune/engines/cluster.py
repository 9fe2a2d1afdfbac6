"""What a search asks of a cluster, and what runs on its nodes; without Ray, and quick to import there."""

import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoprune import __version__


@dataclass(frozen=True)
class Cluster:
    """Where to run and how much each worker takes; see `Config` for the fields of the same names.

    Attributes:
        required_paths: files and folders that every node must have as this one has them.
    """

    address: str | None = None
    workers: int = 1
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    required_paths: tuple[Path, ...] = ()


def worker_slots(resources: Mapping[str, float], cluster: Cluster) -> int:
    """How many workers fit on a node."""
    wanted = {"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial}
    counts = [resources.get(name, 0) / amount + 1e-9 for name, amount in wanted.items() if amount > 0]
    return math.floor(min(counts))


def missing_inputs(paths: Mapping[str, int | None]) -> str | None:
    """The first path that differs on a node, in a few words; runs there.

    Args:
        paths: files with their sizes in bytes, folders with ``None``.
    """
    for name, size in paths.items():
        path = Path(name)
        if not path.exists():
            return f"can't see {name}"
        if size is not None and path.stat().st_size != size:
            return f"has another {name} ({path.stat().st_size} bytes, here {size})"
    return None


def sizes(paths: tuple[Path, ...]) -> dict[str, int | None]:
    """What `missing_inputs` compares, as it is on this machine."""
    return {str(path): path.stat().st_size if path.is_file() else None for path in paths}


def node_report(paths: Mapping[str, int | None]) -> tuple[str, str | None]:
    """The version of autoprune that a node has, and what `missing_inputs` says; runs there."""
    return __version__, missing_inputs(paths)


def kill(pid: int) -> None:
    """Kills a process, frozen or not; runs on its node."""
    os.kill(pid, signal.SIGKILL)
