"""Marks are at the figures of their detectors, and a picture is written whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autoprune.errors import RunError
from autoprune.report import plots
from autoprune.report.tables import Entry

DENSE = Entry("dense", "dense", 0.46, 7.4)
ENTRIES = [
    Entry("trial 0", "uniform", 0.30, 3.7),
    Entry("trial 1", "one-shot", 0.36, 3.6, on_front=True),
    Entry("trial 2", "searched", 0.25, 1.6, on_front=True, recovered_map=0.42),
    Entry("trial 3", "searched", 0.20, 1.9),
    Entry("trial 4", "searched", None, 2.0),
]


def test_marks_lines_and_budgets_are_at_their_values() -> None:
    axes = plots.front_figure(ENTRIES, DENSE, budgets_gflops=[3.7, 2.4]).axes[0]
    marks = {mark.get_label(): mark.get_offsets().tolist() for mark in axes.collections}
    assert marks["dense detector"] == [[7.4, pytest.approx(46)]]
    assert marks["uniform pruning (warm start)"] == [[3.7, pytest.approx(30)]]
    assert marks["searched"] == [[1.6, pytest.approx(25)], [1.9, pytest.approx(20)]]
    assert marks["after recovery"] == [[1.6, pytest.approx(42)]]
    front, *budgets = axes.lines
    assert np.allclose(front.get_xydata(), [[1.6, 25], [3.6, 36]])
    assert [line.get_xdata()[0] for line in budgets] == [3.7, 2.4]


def test_the_line_omits_trials_that_are_beaten_in_these_two_axes() -> None:
    third = Entry("trial 5", "searched", 0.22, 2.2, on_front=True, latency_ms=1.0)  # the fastest, no more
    (front,) = plots.front_figure([*ENTRIES, third], DENSE).axes[0].lines
    assert np.allclose(front.get_xydata(), [[1.6, 25], [3.6, 36]])


def test_kinds_differ_by_shape_and_beaten_trials_are_hollow() -> None:
    assert len({mark.marker for mark in plots.MARKS.values()}) == len(plots.MARKS)
    axes = plots.front_figure(ENTRIES, DENSE).axes[0]
    searched = next(mark for mark in axes.collections if mark.get_label() == "searched")
    assert [color[3] for color in searched.get_facecolors()] == [1.0, 0.0]


def test_the_picture_is_a_png_of_a_readable_size(tmp_path: Path) -> None:
    path = tmp_path / "run" / "front.png"
    plots.plot_front(path, ENTRIES, DENSE, [3.7], "runs/x")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 900
    assert [file.name for file in path.parent.iterdir()] == ["front.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / "front.png"
    path.write_bytes(b"old")

    def full(self: Figure, where: Path, **_: object) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(RunError, match="disk is full"):
        plots.plot_front(path, ENTRIES, DENSE)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["front.png"]


def test_the_sibling_and_the_dense_detector_are_filled_and_labeled() -> None:
    sibling = Entry("smaller sibling", "sibling", 0.41, 2.5)
    axes = plots.front_figure([*ENTRIES, sibling], DENSE).axes[0]
    marks = {mark.get_label(): mark for mark in axes.collections}
    mark = marks["smaller sibling, trained as long"]
    assert mark.get_offsets().tolist() == [[2.5, pytest.approx(41)]]
    assert mark.get_facecolors()[0][3] == 1.0
    labels = {text.get_text(): text.xy for text in axes.texts if text.get_text()}
    assert labels["smaller sibling: 41.0"] == (2.5, pytest.approx(41))
    assert labels["dense: 46.0"] == (7.4, pytest.approx(46))


def test_recoveries_have_a_front_of_their_own() -> None:
    entries = [
        Entry("trial 0", "searched", 0.20, 2.0, recovered_map=0.41),
        Entry("trial 1", "searched", 0.25, 3.0, recovered_map=0.44),
        Entry("trial 2", "uniform", 0.24, 2.9, recovered_map=0.40),
    ]
    _, recovered = plots.front_figure(entries, DENSE).axes[0].lines
    assert np.allclose(recovered.get_xydata(), [[2.0, 41], [3.0, 44]])


def test_budgets_are_labeled_by_their_fraction_unless_they_are_too_close() -> None:
    axes = plots.front_figure(ENTRIES, DENSE, budgets_gflops=[3.7, 3.6, 1.85]).axes[0]
    labels = [(text.get_text(), text.xy[0]) for text in axes.texts if text.get_text().endswith("%")]
    assert labels == [("50%", 3.7), ("25%", 1.85)]


def test_a_path_in_the_title_is_no_formula(tmp_path: Path) -> None:
    plots.plot_front(tmp_path / "front.png", ENTRIES, DENSE, title=r"runs/$a\b$")
    assert (tmp_path / "front.png").is_file()
