"""A run whose data has changed: refused with what changed, or, accepted, as a new search on the new data."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from autoprune.cli.main import main
from autoprune.errors import RunError
from autoprune.files import write_text
from autoprune.recovery.recover import recover
from autoprune.run.results import load_result
from autoprune.search.pipeline import search


def halve_boxes(data):
    """Removes every second box of the validation images; returns how many there were and are."""
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    kept = content["annotations"][::2]
    counts = len(content["annotations"]), len(kept)
    file.write_text(json.dumps({**content, "annotations": kept}))
    return counts


def remove_images(data):
    """Half of the validation images are gone, as after a copy that broke off; returns how many there were."""
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for image in content["images"][::2]:
        next((data / "images").rglob(image["file_name"])).unlink()
    file.write_text(json.dumps(content, indent=1))  # within a process, annotations are read once
    return len(content["images"]), len(content["images"]) // 2


@pytest.fixture
def settings(demo_settings, tmp_path):
    data = Path(shutil.copytree(demo_settings["data"], tmp_path / "data"))
    changes = {"data": data, "rungs": (0,), "criterion": "l2", "trials": 3}
    return {**demo_settings, **changes, "out": tmp_path / "my run"}


@pytest.mark.parametrize(("change", "what"), [(halve_boxes, "boxes"), (remove_images, "images")])
def test_a_change_is_refused_with_what_changed(settings, change, what):
    search({**settings, "trials": 1})
    before = {path: path.read_bytes() for path in settings["out"].rglob("*") if path.is_file()}
    was, now = change(settings["data"])
    with pytest.raises(RunError, match=rf"validation data: .*{was} {what} before, {now} now.*--accept-data-"):
        search(settings)
    assert before == {path: path.read_bytes() for path in settings["out"].rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_accepted_change_is_a_new_search_beside_the_trials_before(settings, tmp_path, capsys):
    first = search(settings)
    figures = [(r.number, dict(r.metrics)) for r in first.records]
    boxes, _ = halve_boxes(settings["data"])
    second = search(settings, accept_data_change=True)
    new = search({**settings, "out": tmp_path / "new"})

    def values(result):
        return [(r.origin, dict(r.widths), r.metrics["map"]) for r in result.records if r.counts]

    assert values(second) == values(new) != values(first)
    assert second.dense == new.dense != first.dense
    assert [p.metrics["map"] for p in second.front] == [p.metrics["map"] for p in new.front]
    assert second.best.metrics["map"] == new.best.metrics["map"]
    assert [(r.number, dict(r.metrics)) for r in second.records if r.other_data] == figures
    assert second.set_aside == {0, 1, 2}
    assert search(settings).set_aside == {0, 1, 2}  # the same command without the flag

    run = settings["out"]
    with (run / "front.csv").open() as file:
        assert {int(row["trial"]) for row in csv.DictReader(file)} == {p.trial for p in second.front}
    assert {path.stem for path in (run / "policies").iterdir()} == {
        f"trial-{p.trial:04d}" for p in second.front
    }
    with pytest.raises(RunError, match=r"trial 1 of .*run was measured on other data .*; choose another"):
        recover(run, [1])

    capsys.readouterr()
    assert main(["front", str(run), "--all"]) == 0
    before, _, line = " ".join(capsys.readouterr().out.split()).partition("set aside")  # lines are wrapped
    assert f"3 trials (0-2) measured on other data (6 images, {boxes} boxes)" in line
    assert f"dense detector has {100 * first.dense['map']:.1f} mAP" in line
    assert "trial 1 " not in before
    assert f"next: autoprune recover '{run}' --trial {second.best.trial}" in line
    assert main(["front", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["trial"] for each in shown["trials"]] == [r.number for r in second.records if r.counts]
    assert [each["trial"] for each in shown["measured_on_other_data"]] == [0, 1, 2]
    assert not any(each["on_front"] for each in shown["measured_on_other_data"])
    assert main(["report", str(run), "--csv"]) == 0
    assert line.partition(";")[0] in (run / "report.html").read_text()
    with (run / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows if row["other_data"] == "1"] == ["0", "1", "2"]
    assert [row["trial"] for row in rows if row["other_data"] == "0"] == ["3", "4", "5"]


def test_the_command_has_the_flag_and_the_run_does_not_keep_it(settings, capsys):
    file = settings["out"].with_suffix(".yaml")
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    write_text(file, yaml.safe_dump({**plain, "rungs": [0], "trials": 1}))
    command = ["search", "--config", str(file)]
    assert main(command) == 0
    halve_boxes(settings["data"])
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--accept-data-change" in error
    assert main([*command, "--accept-data-change"]) == 0
    assert "1 trials were measured on other data" not in (said := capsys.readouterr().out)
    assert "the trials so far are set aside" in said
    assert "1 trial was measured on other data: set aside" in said
    assert "accept" not in (settings["out"] / "config.yaml").read_text()
    assert len(load_result(settings["out"]).set_aside) == 1
