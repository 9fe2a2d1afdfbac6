"""Runs the command line in this process and shows what a user would see; a tiny detector and its data."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

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

    def is_refusal(self, *fragments: str) -> bool:
        """One line on standard error, exit code 2, and all of ``fragments`` in it."""
        lines = self.err.strip().splitlines()
        assert self.code == 2, (self.code, self.out, self.err)
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        for fragment in fragments:
            assert fragment in lines[0], lines[0]
        return True


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
