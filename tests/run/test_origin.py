"""Other weights or data than a run was made from are refused, under whatever path; moved ones are not."""

from types import SimpleNamespace

import pytest

from autoprune.config import make_config
from autoprune.errors import RunError
from autoprune.run.directory import RunDirectory
from autoprune.run.origin import check_origin

DATA = {"training data": "t" * 16, "validation data": "v" * 16}
IDENTITY = {"weights": "w" * 16, **DATA}


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(make_config(out=directory.path, data=tmp_path / "data", weights="dense.pt"), {})
    return directory


def task(data, weights="w" * 64, **changes):
    return SimpleNamespace(
        config=make_config(data=data, weights="new.pt"), weights_sha256=weights, data_identity=DATA | changes
    )


def test_what_was_moved_is_the_same(run, tmp_path):
    check_origin(run, NOTES, task(tmp_path / "moved"))
    check_origin(run, {}, task(tmp_path / "moved"))  # killed before there was a study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "x" * 64}, r"new\.pt is not what .*run was made from; give the dense .*--weights"),
        ({"validation data": "x"}, r"the validation data in .*moved is not what .*; give .* \(--data, YAML"),
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
