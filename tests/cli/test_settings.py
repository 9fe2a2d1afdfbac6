"""Options are the fields of `Config`: same names and defaults, flags over YAML, one-line refusals."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from autoprune.cli import main as module
from autoprune.cli.settings import PANELS, with_config
from autoprune.config import Config

from .conftest import best_recovered

Run = Callable[..., Any]


@pytest.fixture
def settings(autoprune: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command that takes all settings, and returns what it got, or the refusal."""
    got: list[Config] = []

    @with_config(*PANELS, defaults={"out": "runs/probe"})
    def probe(config: Config) -> None:
        """Keep the settings."""
        got.append(config)

    app = typer.Typer()
    app.callback()(module.root)
    app.command("probe")(probe)
    monkeypatch.setattr(module, "app", app)

    def run(*arguments: object) -> Any:
        outcome = autoprune("probe", *arguments)
        return got.pop() if got else outcome

    return run


def test_each_field_is_in_exactly_one_panel() -> None:
    listed = [name for names in PANELS.values() for name in names]
    assert sorted(listed) == sorted(Config.model_fields)


def test_no_flags_give_the_defaults_and_those_of_the_command(settings: Run) -> None:
    assert settings() == Config(out=Path("runs/probe"))


def test_flags_reach_their_fields(settings: Run) -> None:
    config = settings(
        *("--budget-gflops", "50%,33%", "--image-cache-gib", "0.5", "--strict", "--no-warm-starts"),
        *("--rungs", "0,5,50", "--input-size", "192x256", "--objectives", "map,gflops,latency_ms"),
        *("--model-arguments", '{"min_size": 192, "returned_layers": [2, 3]}', "--trials", "7"),
    )
    assert config.budget_gflops == ("50%", "33%")
    assert config.image_cache_gib == 0.5
    assert config.strict
    assert not config.warm_starts
    assert config.rungs == (0, 5, 50)
    assert config.input_size == (192, 256)
    assert config.objectives == ("map", "gflops", "latency_ms")
    assert config.model_arguments == {"min_size": 192, "returned_layers": [2, 3]}
    assert config.trials == 7


def test_a_list_given_several_times_is_one(settings: Run) -> None:
    config = settings(
        "--budget-gflops", "50%", "--trials", "7", "--budget-gflops", "33%,20%", "--trials", "8"
    )
    assert config.budget_gflops == ("50%", "33%", "20%")
    assert config.trials == 8, "of a single value the last holds, as everywhere"


def test_flags_win_over_the_file_and_the_file_over_defaults(settings: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("trials: 5\nseed: 3\nout: runs/mine\nstrict: true\n")
    config = settings("--config", file, "--seed", "9", "--no-strict")
    assert (config.trials, config.seed, config.out, config.strict) == (5, 9, Path("runs/mine"), False)


def test_what_was_given_is_known_also_where_it_is_the_default_or_null(settings: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: null\nseed: 0\n")
    config = settings("--config", file, "--clip-norm", "1")
    assert config.model_fields_set == {"learning_rate", "seed", "clip_norm", "out"}
    assert config.learning_rate is None


def test_an_unknown_key_of_the_file_is_refused_with_the_near_ones(settings: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("budget_gflop: 50\n")
    assert settings("--config", file).is_refusal("`budget_gflop`", str(file), "budget_gflops")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--trials", "many"], ["trials", "'many'"]),
        (["--sampler", "magic"], ["sampler", "'magic'", "'tpe'"]),
        (["--input-size", "800"], ["--input-size", "800x1344", "'800'"]),
        (["--input-size", "²x3"], ["--input-size", "800x1344"]),
        (["--input-size", "64x99999999"], ["--input-size", "800x1344"]),
        (["--model-arguments", "{min"], ["--model-arguments", "JSON"]),
        (["--model-arguments", '{"a": 1, "a": 2}'], ["--model-arguments", "JSON", "'a' is given twice"]),
        (["--objectives", "gflops"], ["objectives must hold map"]),
        (["--rungs", "5,1", "--out", "x"], ["the settings: rungs must increase, starting from 0 or more"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["--trials"], ["--trials"]),
        (["--seed", "4294967296"], ["--seed", "'4294967296'"]),
    ],
)
def test_bad_values_are_one_line(settings: Run, arguments: list[str], fragments: list[str]) -> None:
    assert settings(*arguments).is_refusal(*fragments)


def test_a_bad_flag_beside_a_file_is_not_blamed_on_the_file(settings: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 5\n")
    outcome = settings("--config", file, "--steps", "none")
    assert outcome.is_refusal("--steps: ", "'none'")
    assert "run.yaml" not in outcome.err


def test_help_shows_choices_and_defaults(autoprune: Run, settings: Run) -> None:
    text = " ".join(autoprune("probe", "--help").out.replace("│", " ").split())
    for field in Config.model_fields:
        assert f"--{field.replace('_', '-')}" in text
    assert "one of thompson, tpe, nsga2, gp, random, qmc; default: thompson" in text
    assert "none turns it off; one or more of tensorboard, mlflow; default: tensorboard" in text
    assert "default: runs/probe" in text


def test_help_says_where_a_default_is_from_that_the_command_chooses(autoprune: Run) -> None:
    """A recovery without flags takes the settings of its run, so no default of `Config` may be shown."""
    assert all(
        text.startswith("the run's")
        for text in re.findall("default: ([^│]*)", flat(autoprune, "recover"))[1:]
    )
    assert "checked against" not in flat(autoprune, "recover")
    shown = {
        "doctor": ["default: none, so that the machine is checked"],
        "export": ["default: that of the detector's run", "default: the run's", "default: the detector's"],
        "inspect": ["default: that of the weights, or 91", "640x640 where it states none"],
        "apply": ["default: none, for a policy holds no weights"],
    }
    for command, texts in shown.items():
        text = flat(autoprune, command)
        assert all(part in text for part in texts), text
        assert "from the data" not in text


def flat(autoprune: Run, command: str) -> str:
    """The help of a command in one line, without the frames of its panels."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", autoprune(command, "--help").out).split())


NOTHING = "does nothing"


@pytest.mark.parametrize(
    ("line", "fragments"),
    [
        ("eval FOLDER --weights-key ema", ["--weights-key", NOTHING]),
        ("eval FOLDER --num-classes 3", ["--num-classes", NOTHING]),
        ("eval --weights FOLDER --model x", ["--model", NOTHING]),
        ("inspect FOLDER --model x", ["--model", NOTHING]),
        ("inspect fcos_resnet18_fpn --model x", ["--model", NOTHING]),
        ("inspect FOLDER --policy FOLDER/policy.yaml", ["--policy", NOTHING]),
        ("inspect --list --num-classes 3", ["--num-classes", NOTHING, "--list"]),
        ("inspect --list fcos_resnet18_fpn", ["--list", "fcos_resnet18_fpn"]),
        ("latency FOLDER --weights x.pt", ["--weights", NOTHING]),
        ("export FOLDER --to TO --data x", ["--data", NOTHING, "--format"]),
        ("export FOLDER --to TO --parity-images 3", ["--parity-images", NOTHING, "--format"]),
        ("export FOLDER --to TO --format onnx --images x --data x", ["--data", NOTHING, "--images"]),
        ("space --latency-runtime openvino --to TO", ["--latency-runtime", "--measure-multiples"]),
        ("search --workers 2 --out TO", ["--workers", NOTHING, "--engine ray"]),
        ("search --latency-runtime openvino --out TO", ["--latency-runtime", "--budget-latency-ms"]),
        ("search --rungs 0 --rung-keep 0.3 --out TO", ["--rung-keep", "--rungs"]),
        ("train --input-size 64x64", ["--input-size", NOTHING, "omit it"]),
        ("train --recalibration-images 3", ["--recalibration-images", NOTHING]),
        ("latency FOLDER --model x", ["--model", NOTHING]),
        ("inspect x --model-arguments null", ["--model-arguments", "JSON", "null"]),
        ("inspect x --model-arguments [1]", ["--model-arguments", "JSON", "[1]"]),
    ],
)
def test_no_option_is_ignored(
    autoprune: Run, checked_run: Path, tmp_path: Path, line: str, fragments: list[str]
) -> None:
    words = line.replace("FOLDER", str(best_recovered(checked_run))).replace("TO", str(tmp_path / "to"))
    assert autoprune(*words.split()).is_refusal(*fragments)
    assert not list(tmp_path.iterdir())


def test_a_settings_file_may_hold_more_than_a_command_uses(
    autoprune: Run, checked_run: Path, tmp_path: Path
) -> None:
    """Such as the dense weights and the model of the run, for the data that it also names."""
    outcome = autoprune("eval", best_recovered(checked_run), "--config", checked_run / "config.yaml")
    assert outcome.code == 0, outcome.err


def test_the_help_omits_what_does_nothing(autoprune: Run) -> None:
    shown = autoprune("train", "--help").out
    assert "--batch-size" in shown
    assert not [name for name in ("--input-size", "--recalibration-images") if name in shown]
