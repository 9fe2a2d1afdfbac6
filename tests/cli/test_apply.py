"""`apply` prunes the dense weights as the policy does in Python, and refuses what does not fit it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.detectors import detector_inputs, load_dense, resize_rule
from autoprune.export import load
from autoprune.policy import Policy, hash_weights

from .conftest import best_on_front

Run = Callable[..., Any]


@pytest.fixture
def policy(checked_run: Path) -> Path:
    """The best policy file of a run on the demo's detector."""
    return checked_run / f"policies/trial-{best_on_front(checked_run):04d}.yaml"


def test_the_dense_weights_are_pruned(
    autoprune: Run, policy: Path, demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    weights, folder = demo_settings["weights"], tmp_path / "pruned"
    outcome = autoprune("apply", policy, "--weights", weights, "--to", folder)
    assert outcome.code == 0, outcome.err
    assert "read back: the outputs on a random image are identical" in outcome.out
    assert outcome.next_command() == ["eval", str(folder), "--data", "DATA"]
    model = load(folder)
    dense, _ = load_dense(demo_settings["model"], demo_settings["model_arguments"], weights=weights)
    expected = Policy.load(policy).apply(dense)
    assert hash_weights(model.state_dict()) == hash_weights(expected.state_dict())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*detector_inputs((128, 128)))
    saved = Policy.load(folder / "policy.yaml")
    assert saved.metrics["gflops"] == pytest.approx(counter.get_total_flops() / 2e9, abs=1e-9)
    assert "map" not in saved.metrics  # it was measured with other weights


def test_a_policy_of_a_smaller_input_size_runs_at_it_in_every_command(
    autoprune: Run, policy: Path, demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    content = yaml.safe_load(policy.read_text())
    content |= {"input_size": [96, 96], "resize": {"min_size": 96, "max_size": 96}, "metrics": {}}
    smaller, folder = tmp_path / "smaller.yaml", tmp_path / "pruned"
    smaller.write_text(yaml.safe_dump(content))
    weights, data = demo_settings["weights"], demo_settings["data"]
    assert autoprune("apply", smaller, "--weights", weights, "--to", folder).code == 0

    # a detector that was built for the size, pruned by the same channels
    arguments = {**demo_settings["model_arguments"], "min_size": 96, "max_size": 96}
    built, _ = load_dense(demo_settings["model"], arguments, weights=weights)
    expected = replace(Policy.load(policy), input_size=(96, 96)).apply(built)
    image = [torch.rand(3, 128, 100)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected(*detector_inputs((96, 96)))
    gflops = counter.get_total_flops() / 2e9
    with torch.no_grad():
        assert torch.equal(load(folder)(image)[0]["boxes"], expected(image)[0]["boxes"])
    scores = evaluate(expected, open_data(data, "val", resize_rule(expected)))
    for arguments in ([smaller, "--weights", weights], [folder]):
        printed = json.loads(autoprune("eval", *arguments, "--data", data, "--json").out)
        assert printed["metrics"]["map"] == pytest.approx(scores.map, abs=1e-6)
    assert json.loads(autoprune("inspect", smaller, "--json").out)["pruned"]["gflops"] == gflops
    assert "96x96" in autoprune("latency", smaller, folder, "--repeats", 1).out
    exported = tmp_path / "exported"
    assert autoprune("export", folder, "--to", exported).code == 0
    assert resize_rule(load(exported)) == resize_rule(expected)
    assert Policy.load(exported / "policy.yaml").metrics["gflops"] == gflops


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["Platelets", "RBC", "WBC"], ["Platelets", "RBC", "WBC"]),
        (["cat", "dog", "horse"], ["cat", "dog", "horse"]),
        (["rbc", "wbc", "platelets"], ["RBC", "WBC", "Platelets"]),
        (None, ["RBC", "WBC", "Platelets"]),
    ],
)
def test_labels_are_those_that_other_weights_name(
    autoprune: Run,
    policy: Path,
    demo_settings: dict[str, Any],
    tmp_path: Path,
    named: list[str] | None,
    expected: list[str],
) -> None:
    content = yaml.safe_load(policy.read_text())
    content["labels"] = {1: "RBC", 2: "WBC", 3: "Platelets"}
    more = [f"class {label}" for label in range(4, content["model"]["num_classes"])]
    labeled, other, folder = tmp_path / "labeled.yaml", tmp_path / "other.pt", tmp_path / "pruned"
    labeled.write_text(yaml.safe_dump(content))
    model, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    state = {name: t * 1.01 if name.endswith("conv1.weight") else t for name, t in model.state_dict().items()}
    torch.save({"model": state, **({"names": named + more} if named else {})}, other)
    outcome = autoprune("apply", labeled, "--weights", other, "--to", folder)
    assert outcome.code == 0, outcome.err
    changed = expected[0] != "RBC"
    expected = expected + more if changed else expected
    assert Policy.load(folder / "policy.yaml").labels == dict(enumerate(expected, 1))
    with safe_open(folder / "model.safetensors", "pt") as file:
        header = file.metadata() or {}
    assert json.loads(header["labels"]) == {str(n): name for n, name in enumerate(expected, 1)}
    assert ("the policy is of 1 RBC, 2 WBC, 3 Platelets" in outcome.out) == changed


def test_a_policy_of_another_model_is_refused(
    autoprune: Run, policy: Path, demo_settings: dict[str, Any], tiny_weights: Path, tmp_path: Path
) -> None:
    to = ["--to", tmp_path / "x"]
    assert autoprune("apply", policy, "--weights", tiny_weights, *to).is_refusal("keys differ")
    content = yaml.safe_load(policy.read_text())
    content["groups"]["backbone.nowhere"] = {"width": 8, "keep": "0-3"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    outcome = autoprune("apply", tmp_path / "other.yaml", "--weights", demo_settings["weights"], *to)
    assert outcome.is_refusal("another model", "backbone.nowhere")
    assert not (tmp_path / "x").exists()


def test_weights_have_to_be_given_and_the_folder_must_be_new(
    autoprune: Run, policy: Path, demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    assert autoprune("apply", policy, "--to", tmp_path / "x").is_refusal("--weights", "YAML: weights")
    (tmp_path / "kept.txt").write_text("mine")
    flags = ["--weights", demo_settings["weights"], "--to", tmp_path]
    assert autoprune("apply", policy, *flags).is_refusal("already exists", "--to")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_what_is_no_policy_is_refused(autoprune: Run, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    for name in ("nowhere.yaml", "list.yaml"):
        outcome = autoprune("apply", tmp_path / name, "--to", tmp_path / "x")
        assert outcome.is_refusal(name)


@pytest.mark.parametrize("command", ["apply", "inspect", "latency"])
def test_an_edited_policy_is_named_and_its_stale_costs_go_nowhere(
    autoprune: Run, policy: Path, demo_settings: dict[str, Any], tmp_path: Path, command: str
) -> None:
    content = yaml.safe_load(policy.read_text())
    stale = content["metrics"]["gflops"]
    content["groups"].popitem()
    edited = tmp_path / "edited.yaml"
    edited.write_text(yaml.safe_dump(content, sort_keys=False))
    to = tmp_path / "pruned"
    more = {"apply": ["--weights", demo_settings["weights"], "--to", to], "latency": ["--repeats", 1]}
    outcome = autoprune(command, edited, *more.get(command, []))
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "says gflops" in line]
    assert "edited.yaml" in line
    assert f"{stale:g}" in line
    if command == "apply":
        assert Policy.load(to / "policy.yaml").metrics["gflops"] > stale
