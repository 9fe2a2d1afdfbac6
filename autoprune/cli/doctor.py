"""`autoprune doctor`: is this machine ready, and which of its resources would a run use?"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from autoprune import __version__, progress
from autoprune.cli.settings import refuse_useless, with_config
from autoprune.cli.terminal import show_table, tell, working
from autoprune.config import Config
from autoprune.errors import AutopruneError

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "scipy": "scipy.optimize",
    "optuna": "optuna",
    "ray": "",
    "pycocotools": "pycocotools.mask",
    "hotcoco": "hotcoco",
    "pillow": "PIL.Image",
    "pydantic": "pydantic",
    "safetensors": "safetensors.torch",
}
"""Of each package, the module that loads what it has of compiled code; Ray has its own check."""
LEAST_DISK_GIB = 1.0
LEAST_MEMORY_GIB = 3.0
PAGE = "doctor.html"
"""What `doctor --data` writes into the folder of --out."""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what is checked.
        result: its state.
        remedy: what to do where that is not enough; empty where it is.
    """

    name: str
    result: str
    remedy: str = ""


@with_config("data", "val_fraction", described={"data": "none, so that the machine is checked"})
def doctor(
    config: Config,
    flags: set[str],
    out: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="Folder for run directories, whose disk is checked.")
    ] = Path("runs"),
) -> None:
    """Check this machine (versions, devices, memory, disk, operators, Ray), or, with --data, a data set.

    Of a data set it shows the layout, the images, boxes and classes of each split, and what
    is odd. Three pictures with their boxes are shown on a page in the folder of --out.
    """
    has_data = "data" in config.model_fields_set
    if not has_data:
        refuse_useless(flags, {"val_fraction"}, "without --data; give both, or omit it")
    with working() as console:
        if has_data:
            _check_data(console, config, out / PAGE)
            return
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        checks = [*(_checked(probe) for probe in _PROBES), _disk(out)]
        for check in checks:
            table.add_row("FAIL" if check.remedy else "ok", check.name, check.result)
        show_table(console, table)
        failed = [check for check in checks if check.remedy]
        if failed:
            raise AutopruneError("; ".join(f"{check.name}: {check.remedy}" for check in failed))
        console.print("no problems; next: `autoprune demo`")


def _check_data(console: "Console", config: Config, page: Path) -> None:
    from autoprune.data.survey import box_counts, survey
    from autoprune.report.data_page import write_data_page

    with progress.show(None):  # what opening a split says is part of what is odd
        overview = survey(config.data, config.val_fraction)
    tell(console, f"layout: {overview.layout}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("split", "images", "boxes", "boxes of each class"):
        table.add_column(
            heading, justify="right" if heading in ("images", "boxes") else "left", overflow="fold"
        )
    lines = []
    for name, split in overview.splits.items():
        counts = box_counts(split)
        classes = ", ".join(f"{label} {count}" for label, count in counts.items())
        table.add_row(name, str(len(split)), str(sum(counts.values())), classes)
        images = progress.count_of(len(split), "image")
        boxes = progress.count_of(sum(counts.values()), "box", "boxes")
        lines.append(f"{name}: {images}, {boxes} ({classes})")
    show_table(console, table)
    labels = overview.splits.get("train", next(iter(overview.splits.values()))).labels_line
    tell(console, labels)
    odd = [f"odd: {line}" for line in overview.odd]
    for line in odd:
        tell(console, line)
    split = next(iter(overview.splits.values()))
    place = config.data if isinstance(config.data, Path) else config.data.train.annotations
    write_data_page(page, str(place), [f"layout: {overview.layout}", *lines, labels, *odd], split)
    tell(console, f"wrote {page}: pictures with their boxes")
    if "val" not in overview.splits:
        tell(
            console,
            "no validation split; --val-fraction 0.2 takes one of the images, the same ones each time",
        )


def _versions() -> Check:
    installed = [f"autoprune {__version__}", f"Python {platform.python_version()}"]
    missing: list[str] = []
    broken: dict[str, str] = {}
    remedies = []
    for name, module in PACKAGES.items():
        try:
            installed.append(f"{name} {version(name)}")
            if module:
                import_module(module)
        except PackageNotFoundError:
            missing.append(name)
        except (ImportError, OSError) as error:  # of a library that it is linked with
            broken[name] = " ".join(str(error).split())
    installed += [f"{name} can't be imported: {problem}" for name, problem in broken.items()]
    if missing:
        remedies.append(f"pip install {' '.join(missing)}")
    if broken:
        remedies.append(f"pip install --force-reinstall {' '.join(broken)}")
    if "hotcoco" in (*missing, *broken):
        remedies.append("or work with --evaluator pycocotools")
    return Check("versions", ", ".join(installed), ", ".join(remedies))


def _checked(probe: Callable[[], Check]) -> Check:
    """What a probe says, also where a library that it needs can't be imported."""
    try:
        return probe()
    except (ImportError, OSError) as error:
        name = probe.__name__.strip("_")
        return Check(name, " ".join(str(error).split()), "install what can't be imported")


def _devices() -> Check:
    import torch

    names = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())
    ]
    return Check("devices", ", ".join(["cpu", *names]))


def _threads() -> Check:
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("CPU threads", f"torch uses {torch.get_num_threads()}, this process may use {allowed} cores")


def _memory() -> Check:
    free = free_memory_gib()
    if free is None:
        return Check("memory", "unknown on this system")
    remedy = "" if free >= LEAST_MEMORY_GIB else f"free {LEAST_MEMORY_GIB:.0f} GiB; the demo needs that much"
    return Check("memory", f"{free:.1f} GiB free", remedy)


def free_memory_gib() -> float | None:
    """Memory available to a new process, within its container's limit; ``None`` where it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        used = int((group / "memory.current").read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        limit = int((group / "memory.max").read_text()) - used + int(cached.get("inactive_file", 0))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        limit = free
    return min(free, limit) / 2**30


def _disk(folder: Path) -> Check:
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return Check("disk", f"{existing} can't be written to", "choose another folder with --out")
    remedy = "" if free >= LEAST_DISK_GIB else f"free {LEAST_DISK_GIB:.0f} GiB, or choose another --out"
    return Check("disk", f"{free:.1f} GiB free for {folder}", remedy)


def _operators() -> Check:
    import torch
    from torchvision import ops

    try:
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.1], [5.0, 5.0, 9.0, 9.0]])
        kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
        pooled = ops.roi_align(torch.ones(1, 1, 8, 8), [boxes[:1]], 2)
        correct = kept == [0, 2] and bool((pooled == 1).all())
    except (RuntimeError, AttributeError) as error:
        return Check("torchvision operators", str(error).splitlines()[0], _MATCHING)
    return Check(
        "torchvision operators",
        "nms and roi_align work" if correct else "wrong results",
        "" if correct else _MATCHING,
    )


_MATCHING = "install the torchvision release that matches torch"


def _ray() -> Check:
    # in a separate process: importing ray here would take seconds and leave threads behind
    done = subprocess.run(
        [sys.executable, "-c", "import ray; print(ray.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("ray", last, "pip install -U 'ray[tune]'; only --engine ray needs it")
    return Check("ray", f"{done.stdout.strip()} can be imported (for --engine ray)")


_PROBES: tuple[Callable[[], Check], ...] = (_versions, _devices, _threads, _memory, _operators, _ray)
