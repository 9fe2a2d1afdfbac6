"""Other weights or data than a run was made from are refused, under whatever path; moved ones are not."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from autoprune import progress
from autoprune.config import make_config
from autoprune.errors import RunError
from autoprune.run.directory import RunDirectory
from autoprune.run.origin import SETTINGS_NOTE, check_origin, check_settings, settings_to_note

DATA = {"training data": "t" * 16, "validation data": "v" * 16}
COUNTS = {"training data": {"images": 8, "boxes": 30}, "validation data": {"images": 6, "boxes": 20}}
NOTES = {"identity": {"weights": "w" * 16, **DATA}, "data": COUNTS}


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(make_config(out=directory.path, data=tmp_path / "data", weights="dense.pt"), {})
    return directory


def task(data, weights="w" * 64, counts=None, **changes):
    return SimpleNamespace(
        config=make_config(data=data, weights="new.pt"),
        weights_sha256=weights,
        data_identity=DATA | changes,
        data_counts=counts or COUNTS,
    )


def test_what_was_moved_is_the_same(run, tmp_path):
    check_origin(run, NOTES, task(tmp_path / "moved"))
    check_origin(run, {}, task(tmp_path / "moved"))  # killed before there was a study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "x" * 64}, r"new\.pt is not what .*run was made from; give the dense .*--weights"),
        (
            {"validation data": "x", "counts": {**COUNTS, "validation data": {"images": 3, "boxes": 9}}},
            r"the data in .*moved is not what .*run was made from: validation data: 6 images before, 3 now, "
            r"20 boxes before, 9 now; give .* \(--data, YAML: data\), .* another --out, .*--accept-data",
        ),
        (
            {"validation data": "x", "counts": {**COUNTS, "validation data": {"images": 6, "boxes": 10}}},
            r"validation data: 20 boxes before, 10 now; give",
        ),
        (
            {"training data": "x", "validation data": "x"},
            r": training data: other files, boxes or classes \(8 images and 30 boxes, as before\); valid",
        ),
    ],
)
def test_other_content_is_refused(run, tmp_path, changes, message):
    with pytest.raises(RunError, match=message):
        check_origin(run, NOTES, task(tmp_path / "moved", **changes))


def test_data_that_was_not_recorded_may_not_move(run, tmp_path):
    """As in version 0.1.0: nothing says that data at another path is the same."""
    recorded = {"weights": "w" * 16}
    check_origin(run, {"identity": recorded}, task(tmp_path / "data"))
    with pytest.raises(
        RunError, match=rf"0\.1\.0 did not record it; give .*{tmp_path / 'data'}, where a link"
    ):
        check_origin(run, {"identity": recorded}, task(tmp_path / "moved"))


def test_of_several_splits_only_those_that_a_search_reads_matter(tmp_path):
    splits = {
        name: {"annotations": tmp_path / f"{name}.json", "images": tmp_path}
        for name in ("train", "val", "test")
    }
    test = splits.pop("test")
    run = RunDirectory(tmp_path / "run")
    run.write_config(make_config(out=run.path, data=splits), {})
    check_origin(run, {"identity": {"weights": "w" * 16}}, task({**splits, "test": test}))
    with pytest.raises(RunError, match=r"0\.1\.0 did not record it; give .*train\.json"):
        check_origin(run, {"identity": {"weights": "w" * 16}}, task({**splits, "val": test}))


def test_a_run_that_recorded_hashes_alone_says_what_there_is_now(run, tmp_path):
    with pytest.raises(
        RunError, match=r"validation data: an unknown number of images before, 6 now, an unkn"
    ):
        check_origin(
            run, {"identity": NOTES["identity"]}, task(tmp_path / "data", **{"validation data": "x"})
        )


def test_a_change_that_is_accepted_is_said(run, tmp_path):
    changed = task(tmp_path / "data", **{"validation data": "x"})
    assert said(lambda: check_origin(run, NOTES, task(tmp_path / "data"), accept_data_change=True)) == (
        f"--accept-data-change does nothing: the data is that of {run.path}\n"
    )
    assert "has no trials yet" in said(lambda: check_origin(run, {}, changed, accept_data_change=True))
    line = said(lambda: check_origin(run, NOTES, changed, accept_data_change=True))
    assert "validation data: other files" in line
    assert "the dense detector is measured again, and the trials so far are set aside" in line
    with pytest.raises(RunError, match="give the dense weights"):
        check_origin(run, NOTES, task(tmp_path / "data", weights="x" * 64), accept_data_change=True)


@pytest.mark.parametrize(
    ("name", "before", "now"), [("criterion", "obs", "l1"), ("seed", 0, 7), ("importance_images", None, 3)]
)
def test_an_edited_setting_is_refused(run, name, before, now):
    notes = {SETTINGS_NOTE: settings_to_note(run.config())}
    before = notes[SETTINGS_NOTE][name] if before is None else before
    check_settings(run, notes)
    text = run.config_file.read_text()
    assert f"\n{name}: {before}\n" in text
    run.config_file.write_text(text.replace(f"\n{name}: {before}\n", f"\n{name}: {now}\n"))
    with pytest.raises(
        RunError, match=rf"config\.yaml says {name} {now!r}, .* of {name} {before!r}; restore"
    ):
        check_settings(run, notes)
    check_settings(run, notes, only=["rungs"])
    check_settings(run, {})  # of a version that recorded none


def test_of_a_run_that_recorded_no_settings_the_space_knows_the_criterion(run):
    run.space_file.write_text(
        "model: m\ninput_size: [64, 64]\ncriterion: l2\ngroups: [{match: a, max_ratio: 0.5}]\n"
    )
    with pytest.raises(RunError, match=r"says criterion 'obs', .* of criterion 'l2'; restore"):
        check_settings(run, {})


def test_data_that_was_not_recorded_cannot_be_compared(run, tmp_path):
    line = said(lambda: check_origin(run, {"identity": {"weights": "w" * 16}}, task(tmp_path / "data")))
    assert "does not know what its training data held" in line
    assert f"can't be compared with the data in {tmp_path}/data" in line


def said(work):
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=1000)):
        work()
    return lines.getvalue()
