"""What users typed with the version before, and their scripts read: flags, YAML keys, columns, JSON keys."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from autoprune.cli.main import COMMANDS, app
from autoprune.cli.settings import RENAMED_FLAGS, with_new_flags
from autoprune.config import RENAMED, load_config

from .conftest import best_recovered

Run = Callable[..., Any]

EARLIER = Path(__file__).parent.parent / "earlier_version" / "finished"

# Every flag of every command of that version.
EARLIER_FLAGS = {
    "apply": "--config --to --weights",
    "demo": "--budget-gflops --out --seed --threads --train",
    "doctor": "--out",
    "eval": (
        "--batch-size --config --data --device --image-cache-gib --json --model --model-arguments "
        "--no-strict --num-classes --split --strict --threads --weights"
    ),
    "export": (
        "--config --data --format --image-cache-gib --images --no-strict --parity-images --raw-heads "
        "--size --strict --threads --to --trial"
    ),
    "front": "--all --json",
    "inspect": (
        "--config --input-size --json --list --model --model-arguments --num-classes --policy --weights"
    ),
    "latency": (
        "--batch --config --device --input-size --json --model --model-arguments --num-classes --record "
        "--repeats --runtime --size --threads --warmup-passes --weights"
    ),
    "recover": (
        "--batch-size --clip-norm --config --device --distill --distill-logits --distill-weighting "
        "--ema-decay --image-cache-gib --learning-rate --no-strict --norm --precision "
        "--recalibration-images --reconstruct-images --regrow-rounds --steps --strict --threads --trial "
        "--warmup --weight-decay"
    ),
    "report": "--csv --images --no-images --png --to",
    "schema": "--policy --space",
    "search": (
        "--address --batch-size --budget-gflops --budget-latency-ms --budget-mparams --check-proxies "
        "--clip-norm --config --confirm --cpus-per-trial --criterion --data --device --distill "
        "--distill-logits --distill-weighting --ema-decay --engine --gpus-per-trial --image-cache-gib "
        "--importance-images --input-size --latency-runtime --learning-rate --model --model-arguments "
        "--no-strict --no-warm-starts --norm --num-classes --objectives --out --precision --proxy-images "
        "--recalibration-images --reconstruct-images --regrow-rounds --rung-keep --rungs --sampler "
        "--seed --space --steps --storage --strict --threads --track --trials --warm-starts --warmup "
        "--weight-decay --weights --workers"
    ),
    "space": (
        "--config --criterion --data --device --force --granularity --image-cache-gib "
        "--importance-images --input-size --latency-runtime --measure-steps --min-width --model "
        "--model-arguments --no-strict --num-classes --round-to --seed --strict --threads --to --weights"
    ),
    "train": (
        "--batch-size --clip-norm --config --data --device --ema-decay --image-cache-gib --input-size "
        "--learning-rate --model --model-arguments --no-strict --norm --num-classes --out --precision "
        "--recalibration-images --seed --steps --strict --threads --warmup --weight-decay --weights"
    ),
}

# What the JSON of `front` and the columns of `trials.csv` were, before the widths.
FRONT_JSON = "trial state origin budget_gflops on_front metrics measured_maps ranked_by reason recovered_map"
TRIALS_CSV = (
    "trial state origin budget_gflops on_front map map50 gflops mparams training_s evaluation_s other_s loss "
    "features measured recovered_map reason map_rung_0 map_rung_1"
)


def options_of(command: str) -> set[str]:
    group = typer.main.get_command(app)
    parameters = group.commands[command].params  # type: ignore[attr-defined]
    return {spelling for one in parameters for spelling in (*one.opts, *one.secondary_opts)}


def test_every_command_is_still_there() -> None:
    assert EARLIER_FLAGS.keys() <= COMMANDS.keys()


@pytest.mark.parametrize("command", EARLIER_FLAGS)
def test_every_flag_is_taken_and_a_renamed_one_gives_a_hint(command: str) -> None:
    options = options_of(command)
    for flag in EARLIER_FLAGS[command].split():
        with warnings.catch_warnings(record=True) as hints:
            warnings.simplefilter("always")
            (_, spelling) = with_new_flags([command, flag])
        assert spelling in options
        expected = [] if flag in options else [f"{flag} is now {spelling}"]
        assert [str(hint.message).partition(";")[0] for hint in hints] == expected


def test_no_alias_hides_a_flag_that_exists() -> None:
    for command, renamed in RENAMED_FLAGS.items():
        options = options_of(command)
        assert set(renamed.values()) <= options
        assert not renamed.keys() & options


def test_every_key_of_a_settings_file_is_read() -> None:
    keys = yaml.safe_load((EARLIER / "config.yaml").read_text()).keys()
    with warnings.catch_warnings(record=True) as hints:
        warnings.simplefilter("always")
        load_config(EARLIER / "config.yaml")
    assert len(hints) == len(keys & RENAMED.keys())


def test_the_columns_of_the_tables_are_the_same(autoprune: Run, checked_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(EARLIER, tmp_path / "run"))
    assert autoprune("report", run, "--csv", "--no-images").code == 0
    header = (run / "trials.csv").read_text().splitlines()[0].split(",")
    assert [name for name in header if not name.startswith("width:")] == TRIALS_CSV.split()
    new, old = ((folder / "front.csv").read_text().splitlines()[0] for folder in (checked_run, EARLIER))
    assert new == old


def test_the_keys_of_the_json_are_the_same(autoprune: Run, checked_run: Path, run_copy: Path) -> None:
    content = json.loads(autoprune("front", run_copy, "--json").out)
    assert list(content) == ["run", "dense", "seconds", "trials"]
    assert all(trial.keys() >= set(FRONT_JSON.split()) for trial in content["trials"])
    (file,) = EARLIER.glob("recovered/*/metrics.json")
    earlier = json.loads(file.read_text())
    metrics = json.loads((best_recovered(checked_run) / "metrics.json").read_text())
    assert earlier.keys() <= metrics.keys()
    assert earlier["settings"].keys() <= metrics["settings"].keys()
    assert earlier["metrics"].keys() <= metrics["metrics"].keys()
