"""Results of recoveries that are read back, from folders written by hand; see also `test_recover_policy`."""

import dataclasses
import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from autoprune import progress
from autoprune.config import ModelSpec, make_config
from autoprune.errors import RunError
from autoprune.policy import Policy, hash_weights
from autoprune.recovery.finished import identify, read_finished
from autoprune.training import TrainSettings

KEEP = {"conv": (0, 2)}
WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3)}


def task(**changes):
    """The fields of a pruning task that a recovery depends on."""
    fields = {
        "config": make_config(),
        "spec": ModelSpec(name="m:f", num_classes=2),
        "weights_sha256": "a" * 64,
        "data_identity": {"training data": "d1", "validation data": "d2"},
        "resize": None,
    }
    return SimpleNamespace(**{**fields, **changes})


SETTINGS = TrainSettings(steps=5)
IDENTITY = identify(task(), SETTINGS, KEEP)


@pytest.fixture
def folder(tmp_path):
    policy = Policy(task().spec, "a" * 64, "l1", (8, 8), {"conv": 3}, KEEP)
    policy.save(tmp_path / "policy.yaml")
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    metrics = {
        "images": 3,
        "metrics": {"map": 0.25},
        "per_class": {"one": 0.25},
        "gflops": 1.0,
        "mparams": 1.0,
        "model_sha256": hash_weights(WEIGHTS),
        "settings": IDENTITY,
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


@pytest.mark.parametrize(
    ("other", "settings", "keep"),
    [
        ({}, dataclasses.replace(SETTINGS, steps=6), KEEP),
        ({}, dataclasses.replace(SETTINGS, seed=1), KEEP),
        ({}, SETTINGS, {"conv": (0, 1)}),
        ({}, SETTINGS, {}),
        ({"config": make_config(learning_rate=0.1)}, SETTINGS, KEEP),
        ({"config": make_config(reconstruct_images=2)}, SETTINGS, KEEP),
        ({"config": make_config(distill_head=False)}, SETTINGS, KEEP),
        ({"config": make_config(regrow_rounds=1)}, SETTINGS, KEEP),
        ({"spec": ModelSpec(name="m:f", num_classes=2, norm="frozen")}, SETTINGS, KEEP),
        ({"weights_sha256": "b" * 64}, SETTINGS, KEEP),
        ({"data_identity": {"training data": "d1", "validation data": "d3"}}, SETTINGS, KEEP),
        ({"resize": SimpleNamespace(to_dict=lambda: {"min_size": 4})}, SETTINGS, KEEP),
    ],
)
def test_what_a_recovery_depends_on_is_its_identity(other, settings, keep):
    assert identify(task(**other), settings, keep) != IDENTITY
    assert identify(task(), SETTINGS, KEEP) == IDENTITY


def test_a_finished_recovery_is_read_back(folder, tmp_path):
    finished = read_finished(folder, IDENTITY)
    assert (finished.map, finished.policy.keep, finished.folder) == (0.25, KEEP, folder)
    assert read_finished(tmp_path / "nothing", IDENTITY) is None


def test_other_settings_are_named_with_what_can_be_done(folder):
    with pytest.raises(RunError, match=r"steps was 5, now 6; give --steps 5, or delete the folder"):
        read_finished(folder, {**IDENTITY, "steps": 6})
    with pytest.raises(RunError, match=r"norm was batch, now frozen; delete the folder"):
        read_finished(folder, {**IDENTITY, "norm": "frozen"})


def test_other_weights_than_those_recovered_are_no_result(folder):
    save_file({name: tensor + 1 for name, tensor in WEIGHTS.items()}, folder / "model.safetensors")
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=400)):
        assert read_finished(folder, IDENTITY, "recovery of trial 3") is None
    problem = f"{folder}/model.safetensors holds other weights than those that were recovered"
    assert lines.getvalue() == f"recovery of trial 3: {problem}; it is recovered again\n"
