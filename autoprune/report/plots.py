"""The front as a picture: mAP over GFLOPs, readable in grey, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.files import replacing
from autoprune.report.tables import Entry, Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# shape, and only then colour, tells the kinds apart; the colours differ in brightness as well
MARKS: dict[Kind, tuple[str, str, str]] = {
    "dense": ("*", "#000000", "dense detector"),
    "uniform": ("s", "#d55e00", "uniform pruning (warm start)"),
    "one-shot": ("^", "#009e73", "one-shot by importance (warm start)"),
    "searched": ("o", "#56b4e9", "searched"),
}
MARK_AREA = 46.0
STAR_AREA = 190.0


def plot_front(
    path: Path,
    entries: Sequence[Entry],
    dense: Entry,
    budgets_gflops: Sequence[float] = (),
    title: str = "",
) -> None:
    """Writes `front_figure` as an image.

    Args:
        path: image file; its suffix chooses the format (.png, .svg, .pdf).
        entries: see `front_figure`.
        dense: see `front_figure`.
        budgets_gflops: see `front_figure`.
        title: see `front_figure`.

    Raises:
        RunError: the file can't be written.
    """
    figure = front_figure(entries, dense, budgets_gflops, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")


def front_figure(
    entries: Sequence[Entry], dense: Entry, budgets_gflops: Sequence[float] = (), title: str = ""
) -> "Figure":
    """Draws all finished trials, their front, the dense detector and the budgets.

    Args:
        entries: trials with a proxy mAP; the others are left out.
        dense: the detector that all were made from.
        budgets_gflops: upper bounds, drawn as vertical lines.
        title: heading of the picture.
    """
    # pyplot would keep global state and pick a window system; a bare figure needs neither
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scored = [entry for entry in entries if entry.map is not None]
    line = _rising([entry for entry in scored if entry.on_front])
    axes.plot(*_places(line), color="#333333", linewidth=1.2, zorder=1, label="front")
    for kind in MARKS:
        _scatter(axes, kind, [entry for entry in [*scored, dense] if entry.kind == kind])
    recovered = [entry for entry in scored if entry.recovered_map is not None]
    if recovered:
        _recoveries(axes, recovered)
    for number, budget in enumerate(budgets_gflops):
        label = "budget: " + ", ".join(f"{limit:.3g}" for limit in budgets_gflops) if number == 0 else None
        axes.axvline(budget, color="#777777", linestyle="--", linewidth=1.0, zorder=0, label=label)
    axes.set_xlabel("GFLOPs (multiply-adds) of one image")
    axes.set_ylabel("mAP at IoU 0.50:0.95, points")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08)
    axes.set_xlim(left=0)  # so that the distance to the dense detector is seen for what it is
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _rising(entries: Sequence[Entry]) -> list[Entry]:
    """Those that no other beats in GFLOPs and mAP; a front of three objectives has others too."""
    line: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.gflops, -(entry.map or 0.0))):
        if not line or (entry.map or 0.0) > (line[-1].map or 0.0):
            line.append(entry)
    return line


def _points(fraction: float | None) -> float:
    return 100 * (fraction or 0.0)


def _places(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    return [entry.gflops for entry in entries], [_points(entry.map) for entry in entries]


def _scatter(axes: Any, kind: Kind, entries: Sequence[Entry]) -> None:
    """One kind of detector: filled where it is on the front, hollow where it is beaten."""
    if not entries:
        return
    marker, colour, label = MARKS[kind]
    filled = [kind == "dense" or entry.on_front for entry in entries]
    axes.scatter(
        *_places(entries),
        s=STAR_AREA if kind == "dense" else MARK_AREA,
        marker=marker,
        facecolors=[colour if fill else "none" for fill in filled],
        edgecolors="#222222" if all(filled) else [("#222222" if fill else colour) for fill in filled],
        linewidths=1.0,
        zorder=2,
        label=label,
    )


def _recoveries(axes: Any, entries: Sequence[Entry]) -> None:
    """Arrows from the proxy mAP of a trial to its mAP after recovery."""
    for entry in entries:
        axes.annotate(
            "",
            xy=(entry.gflops, _points(entry.recovered_map)),
            xytext=(entry.gflops, _points(entry.map)),
            arrowprops={"arrowstyle": "->", "color": "#888888", "linewidth": 0.9},
            zorder=1,
        )
    axes.scatter(
        [entry.gflops for entry in entries],
        [_points(entry.recovered_map) for entry in entries],
        s=MARK_AREA,
        marker="D",
        facecolors="#0072b2",
        edgecolors="#222222",
        linewidths=1.0,
        zorder=3,
        label="after recovery",
    )
