"""`space` writes a file that reads back as asked, never over another, and nothing that is half written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoprune.detectors import build, detector_inputs
from autoprune.graph import analyze
from autoprune.importance import load
from autoprune.latency import multiples
from autoprune.search import curves
from autoprune.space.file import SpaceFile
from autoprune.space.resolve import resolve
from autoprune.task import probe, scoring, sensitivity
from autoprune.task.pruning_task import PruningTask

from .conftest import TINY

Run = Callable[..., Any]
QUICK = ("--criterion", "l2", "--no-curves")


def test_it_is_written_and_read_back_and_never_overwritten(
    autoprune: Run, tiny: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "space.yaml"
    flags = ["space", *tiny, *QUICK, "--granularity", "stage", "--round-to", "4", "--to", file]
    outcome = autoprune(*flags)
    assert outcome.code == 0, outcome.err
    command = outcome.next_command()
    assert command[:3] == ["search", "--space", str(file)]
    for flag in ("--data", "--weights"):
        assert command[command.index(flag) + 1] == str(tiny[tiny.index(flag) + 1])
    space = SpaceFile.load(file)
    assert (space.model, space.criterion, space.granularity, space.round_to) == (TINY.name, "l2", "stage", 4)
    assert "scoring the channels of" in outcome.out
    before = file.read_text()
    assert autoprune(*flags).is_refusal(str(file), "--force")
    assert file.read_text() == before
    again = autoprune(*flags, "--force")
    assert again.code == 0
    assert "scoring the channels" not in again.out
    assert f"by l2 are read from {file.with_suffix('.importance.safetensors')}" in again.out


@pytest.mark.parametrize("by_file", [False, True])
def test_the_next_command_takes_the_scores_and_the_budgets_of_the_settings(
    autoprune: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_file: bool
) -> None:
    settings = {"steps": 3, "importance_images": 5, "empty_blocks": True, "budget_gflops": ["60%"]}
    flags = ["--importance-images", "2", "--seed", "4", "--criterion", "joint", "--no-curves"]
    if by_file:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**settings, "criterion": "obs"}))
        flags += ["--config", str(tmp_path / "mine.yaml")]
    outcome = autoprune("space", *tiny, *flags, "--to", tmp_path / "space.yaml")
    assert outcome.code == 0, outcome.err
    command = outcome.next_command()
    assert ("--model-arguments" in command) is by_file  # else they are in the space
    assert ("--budget-gflops" in command) is not by_file
    monkeypatch.setattr(scoring, "score_together", lambda *_: pytest.fail("scored again"))
    # of the trial, which is not what is tested: the tiny detector finds nothing
    monkeypatch.setattr(PruningTask, "check_labels", lambda *_, **__: None)
    quick = ["--trials", "1", "--rungs", "0", "--reconstruct-images", "0", "--recalibration-images", "2"]
    outcome = autoprune(*command, *quick, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    content = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (content["importance_images"], content["seed"], content["curves"]) == (2, 4, False)
    assert content["budget_gflops"] == (["60%"] if by_file else ["50%"])
    assert not (tmp_path / "run" / "curves.json").exists()


def test_the_next_command_does_not_ask_for_blocks_that_the_space_keeps(
    autoprune: Run, tiny: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"empty_blocks": True}))
    settings = ["space", *tiny, *QUICK, "--config", file, "--to", tmp_path / "space.yaml", "--force"]
    assert "--no-empty-blocks" not in autoprune(*settings).next_command()
    assert "--no-empty-blocks" in autoprune(*settings, "--no-empty-blocks").next_command()


def test_an_interrupt_says_that_scores_are_kept(
    autoprune: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(curves, "score_curves", interrupt)
    outcome = autoprune("space", *tiny, "--criterion", "l2", "--to", tmp_path / "space.yaml")
    assert outcome.code == 130
    assert outcome.err.endswith("what is finished is kept; the same command resumes from there\n")
    assert [path.name for path in tmp_path.iterdir()] == ["space.importance.safetensors"]


def test_whole_blocks_may_go_where_that_is_asked_for(autoprune: Run, tiny: list[str], tmp_path: Path) -> None:
    emptied = []
    for number, flags in enumerate([(), ("--empty-blocks",)]):
        file = tmp_path / f"space-{number}.yaml"
        outcome = autoprune("space", *tiny, *QUICK, *flags, "--to", file)
        assert outcome.code == 0, outcome.err
        emptied.append({rule.match for rule in SpaceFile.load(file).groups if rule.max_ratio == 1})
    assert emptied[0] == set()
    graph = analyze(build(TINY), detector_inputs((64, 64)))
    assert emptied[1] == set(graph.emptiable)
    assert "backbone.body.layer1.0.conv1" in emptied[1]


@pytest.mark.parametrize("round_to", [16, 48])
def test_groups_that_no_multiple_fits_into_are_said(
    autoprune: Run, tiny: list[str], tmp_path: Path, round_to: int
) -> None:
    file = tmp_path / "space.yaml"
    outcome = autoprune("space", *tiny, *QUICK, "--round-to", round_to, "--to", file)
    graph = analyze(build(TINY), detector_inputs((64, 64)))
    space = resolve(SpaceFile.load(file), graph)
    fine = [name for name, step in zip(space.names, space.step, strict=True) if step % round_to]
    narrow = [name for name in fine if graph.groups[name].prunable]
    assert bool(narrow) == (round_to > 16)
    assert (f"{len(narrow)} groups narrower than --round-to {round_to}" in outcome.out) == bool(narrow)


@pytest.mark.parametrize("flag", ["--measure-multiples", "--measure-steps"])
def test_measured_multiples_replace_round_to_under_the_old_name_too(
    autoprune: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    group = "head.classification_head.conv.0.0"
    monkeypatch.setattr(multiples, "measure_multiples", lambda *_: {group: 16})
    outcome = autoprune("space", *tiny, *QUICK, flag, "--to", tmp_path / "space.yaml")
    assert outcome.code == 0, outcome.err
    assert ("--measure-steps is now --measure-multiples" in outcome.err) == (flag == "--measure-steps")
    rules = {rule.match: rule.round_to for rule in SpaceFile.load(tmp_path / "space.yaml").groups}
    assert rules.pop(group) == 16
    assert set(rules.values()) == {None}


def test_without_weights_nothing_is_written(
    autoprune: Run, tiny_model: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    outcome = autoprune("space", *tiny_model, "--no-curves", "--data", tiny_data, "--to", tmp_path / "s.yaml")
    assert outcome.is_refusal("--weights", "YAML: weights", "autoprune demo")
    assert not (tmp_path / "s.yaml").exists()


def test_a_full_disk_leaves_nothing_half_written(
    autoprune: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    outcome = autoprune("space", *tiny, *QUICK, "--to", tmp_path / "new" / "space.yaml")
    assert outcome.is_refusal("disk is full", "space.yaml")
    # the scores were whole before the disk was full: the same command will not compute them again
    scores = tmp_path / "new" / "space.importance.safetensors"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [scores]
    assert load(scores, "l2")


def test_curves_are_kept_beside_the_space_and_not_measured_again(
    autoprune: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "RATIOS", (0.5,))
    monkeypatch.setattr(probe, "IMAGES", 1)
    flags = [
        "space",
        *tiny,
        "--criterion",
        "l2",
        "--reconstruct-images",
        "0",
        "--to",
        tmp_path / "space.yaml",
    ]
    outcome = autoprune(*flags)
    assert outcome.code == 0, outcome.err
    curves = json.loads((tmp_path / "space.curves.json").read_text())["curves"]
    assert set(curves) == set(analyze(build(TINY), detector_inputs((64, 64))).prunable)
    monkeypatch.setattr(sensitivity.SensitivityProbe, "__call__", lambda *_: pytest.fail("measured again"))
    assert autoprune(*flags, "--force").code == 0


def test_settings_of_curves_do_nothing_without_them(autoprune: Run, tiny: list[str], tmp_path: Path) -> None:
    for flag in (["--reconstruct-images", "8"], ["--workers", "2"]):
        outcome = autoprune("space", *tiny, "--no-curves", *flag, "--to", tmp_path / "space.yaml")
        assert outcome.is_refusal(f"{flag[0]} does nothing with --no-curves")
