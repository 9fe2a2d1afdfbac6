"""The front as a picture: mAP over GFLOPs, legible in gray, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoprune.files import replacing
from autoprune.report.tables import TRAINED, Entry, Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Mark(NamedTuple):
    """How detectors of one kind are drawn."""

    marker: str
    color: str
    label: str
    area: float = 46.0


# kinds differ by shape first and by color second; the colors differ in brightness as well
MARKS: dict[Kind, Mark] = {
    "dense": Mark("*", "#000000", "dense detector", 190.0),
    "sibling": Mark("P", "#cc79a7", "smaller sibling, trained as long", 90.0),
    "uniform": Mark("s", "#d55e00", "uniform pruning (warm start)"),
    "one-shot": Mark("^", "#009e73", "one-shot by importance (warm start)"),
    "searched": Mark("o", "#56b4e9", "searched"),
}
RECOVERED = Mark("D", "#0072b2", "after recovery")
EDGE = "#222222"
CLOSEST_LABELS = 0.03  # of the axis' width; a budget closer to the one before gets no label of its own


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
        entries: trials with a proxy mAP, and the smaller sibling if there is one; entries without a mAP are
            omitted.
        dense: the detector that was pruned.
        budgets_gflops: upper bounds, drawn as vertical lines.
        title: heading of the picture.
    """
    # pyplot would keep global state and choose a window system; a bare figure needs neither
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    scored = [entry for entry in entries if entry.map is not None]
    front = _increasing(_positions([entry for entry in scored if entry.on_front]))
    axes.plot(*_columns(front), color="#333333", linewidth=1.2, zorder=1, label="front")
    for kind in MARKS:
        _scatter(axes, kind, [entry for entry in [*scored, dense] if entry.kind == kind])
    _draw_recoveries(axes, [entry for entry in scored if entry.recovered_map is not None])
    axes.margins(0.08)
    axes.set_xlim(left=0)  # so that distances to the dense detector are in proportion
    _draw_budgets(axes, budgets_gflops, dense)
    for entry in [entry for entry in [*scored, dense] if entry.kind in TRAINED]:
        _label(axes, entry)
    axes.set_xlabel("GFLOPs (multiply-adds) of one image")
    axes.set_ylabel("mAP at IoU 0.50:0.95, points")
    # above the labels of the budgets; a `$` in a path is no formula
    axes.set_title(title, loc="left", fontsize=11, pad=16, parse_math=False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _points(fraction: float | None) -> float:
    return 100 * (fraction or 0.0)


def _positions(entries: Sequence[Entry]) -> list[tuple[float, float]]:
    """(GFLOPs, mAP in points) of each."""
    return [(entry.gflops, _points(entry.map)) for entry in entries]


def _increasing(positions: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in GFLOPs and mAP; a front of three objectives also has others."""
    line: list[tuple[float, float]] = []
    for gflops, value in sorted(positions, key=lambda position: (position[0], -position[1])):
        if not line or value > line[-1][1]:
            line.append((gflops, value))
    return line


def _columns(positions: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in positions], [y for _, y in positions]


def _scatter(axes: "Axes", kind: Kind, entries: Sequence[Entry]) -> None:
    """One kind of detector: filled if on the front, hollow if beaten."""
    if not entries:
        return
    mark = MARKS[kind]
    filled = [kind in TRAINED or entry.on_front for entry in entries]
    axes.scatter(
        *_columns(_positions(entries)),
        s=mark.area,
        marker=mark.marker,
        facecolors=[mark.color if fill else "none" for fill in filled],
        edgecolors=EDGE if all(filled) else [(EDGE if fill else mark.color) for fill in filled],
        linewidths=1.0,
        zorder=2,
        label=mark.label,
    )


def _draw_recoveries(axes: "Axes", entries: Sequence[Entry]) -> None:
    """Marks at the mAP after recovery, with arrows from the proxy mAP, and their own front."""
    if not entries:
        return
    recovered = [(entry.gflops, _points(entry.recovered_map)) for entry in entries]
    for start, end in zip(_positions(entries), recovered, strict=True):
        arrow = {"arrowstyle": "->", "color": "#888888", "linewidth": 0.9}
        axes.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=1)
    if len(front := _increasing(recovered)) > 1:
        axes.plot(*_columns(front), color=RECOVERED.color, linewidth=1.2, linestyle=":", zorder=1)
    axes.scatter(
        *_columns(recovered),
        s=RECOVERED.area,
        marker=RECOVERED.marker,
        facecolors=RECOVERED.color,
        edgecolors=EDGE,
        linewidths=1.0,
        zorder=3,
        label=RECOVERED.label,
    )


def _draw_budgets(axes: "Axes", budgets_gflops: Sequence[float], dense: Entry) -> None:
    """Vertical lines with their fraction of the dense GFLOPs at the top."""
    width = axes.get_xlim()[1]
    labeled: list[float] = []
    for budget in budgets_gflops:
        line = axes.axvline(budget, color="#777777", linestyle="--", linewidth=1.0, zorder=0)
        if not labeled:
            line.set_label("budget")
        if all(abs(budget - other) > CLOSEST_LABELS * width for other in labeled):
            _text(axes, f"{budget / dense.gflops:.0%}", (budget, 1.0), (0, 2), "center", across=True)
            labeled.append(budget)


def _label(axes: "Axes", entry: Entry) -> None:
    """The name and mAP of a detector beside its mark: left of it, where the axis begins at 0 GFLOPs."""
    text = f"{entry.name}: {_points(entry.map):.1f}"
    _text(axes, text, (entry.gflops, _points(entry.map)), (-9, 5), "right")


def _text(
    axes: "Axes",
    text: str,
    position: tuple[float, float],
    offset: tuple[float, float],
    align: str,
    across: bool = False,
) -> None:
    """Writes beside a position; ``across`` counts its height from 0 to 1, from bottom to top of the axes."""
    where: Any = ("data", "axes fraction") if across else "data"
    axes.annotate(
        text,
        position,
        xytext=offset,
        xycoords=where,
        textcoords="offset points",
        ha=align,
        va="bottom",
        fontsize=8,
        zorder=4,
    )
