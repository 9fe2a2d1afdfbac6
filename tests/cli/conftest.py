"""Runs the command line in this process and shows what a user would see; a tiny detector; a search's run."""

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from autoprune.cli.main import main
from autoprune.config import ModelSpec
from autoprune.data.shapes import make_shapes
from autoprune.detectors import build, save_state

TINY = ModelSpec(
    name="retinanet_resnet18_fpn",
    arguments={
        "min_size": 64,
        "max_size": 64,
        "fpn_channels": 32,
        "returned_layers": [2, 3],
        "anchor_sizes": [16, 32, 64, 128],
    },
    num_classes=6,
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def next_command(self) -> list[str]:
        """The words of the command that it names as the next one, without the program's name."""
        line = next(line for line in self.out.splitlines() if line.startswith("next: autoprune "))
        return shlex.split(line.removeprefix("next: autoprune ").split(", or ")[0])

    def is_refusal(self, *fragments: str) -> bool:
        """One line on standard error, exit code 2, and all of ``fragments`` in it."""
        lines = self.err.strip().splitlines()
        assert self.code == 2, (self.code, self.out, self.err)
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        for fragment in fragments:
            assert fragment in lines[0], lines[0]
        return True


@pytest.fixture(autouse=True)
def _width_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as a pipe gets them; the workers of pytest-xdist have `COLUMNS` set, which would wrap them."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def autoprune(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("tiny") / "data", seed=0, train=8, val=6, test=4, size=64)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "dense.safetensors"
    save_state(build(TINY), path)
    return path


@pytest.fixture
def tiny_model() -> list[str]:
    """Flags of the tiny detector, without weights and data."""
    return ["--model", TINY.name, "--model-arguments", json.dumps(TINY.arguments)]


@pytest.fixture
def tiny(tiny_model: list[str], tiny_data: Path, tiny_weights: Path) -> list[str]:
    """Flags of the tiny detector with its weights and data."""
    return [*tiny_model, "--data", str(tiny_data), "--weights", str(tiny_weights), "--threads", "1"]


@pytest.fixture
def run_copy(checked_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, for commands that write into it."""
    return Path(shutil.copytree(checked_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def run_data(checked_run: Path) -> Path:
    """The data of the run, whose dense detector is that of the demo."""
    return Path(yaml.safe_load((checked_run / "config.yaml").read_text())["data"])


def front_of(run: Path) -> dict[int, dict[str, str]]:
    """The rows of `front.csv` by trial number."""
    return {int(row["trial"]): row for row in csv.DictReader((run / "front.csv").read_text().splitlines())}


def recovered_maps(run: Path) -> dict[int, float]:
    """By trial number the mAP that its recovery wrote."""
    files = (run / "recovered").glob("trial-*/metrics.json")
    contents = [json.loads(file.read_text()) for file in files]
    return {content["trial"]: content["metrics"]["map"] for content in contents}


def best_on_front(run: Path) -> int:
    """The trial on the front with the highest mAP."""
    rows = front_of(run)
    return max(rows, key=lambda trial: float(rows[trial]["map"]))


def best_recovered(run: Path) -> Path:
    """The folder of the recovered detector with the highest mAP."""
    maps = recovered_maps(run)
    return run / f"recovered/trial-{max(maps, key=lambda trial: maps[trial]):04d}"
