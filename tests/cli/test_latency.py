"""`latency` times the detectors that it is given, in the runtimes that exist, and records where asked."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from autoprune.cli.main import COMMANDS
from autoprune.detectors import Resize
from autoprune.policy import Policy
from autoprune.runtimes import extras
from autoprune.runtimes.sessions import RUNTIMES

from .conftest import TINY, best_on_front, best_recovered

Run = Callable[..., Any]


def test_detectors_are_compared(autoprune: Run, tiny_model: list[str]) -> None:
    arguments = [*tiny_model[2:], "--input-size", "64x64", "--repeats", "2", "--warmup-passes", "0"]
    printed = json.loads(autoprune("latency", TINY.name, "retinanet_resnet34_fpn", *arguments, "--json").out)
    assert "64x64" in printed["label"]
    assert list(printed["detectors"]) == [TINY.name, "retinanet_resnet34_fpn"]
    for stages in printed["detectors"].values():
        assert list(stages) == ["preprocessing", "network", "postprocessing"]
        for entry in stages.values():
            assert 0 < entry["p10_ms"] <= entry["median_ms"] <= entry["p90_ms"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes(autoprune: Run, tiny_model: list[str], runtime: str) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    flags = [*tiny_model[2:], "--runtime", runtime, "--repeats", "1", "--size", "64x64", "--batch", "2"]
    outcome = autoprune("latency", TINY.name, *flags, "--threads", "1")
    assert outcome.code == 0, outcome.err
    assert all(part in outcome.out for part in (runtime, "1 thread,", "batch 2", "network", "100%"))


def test_policies_and_folders_are_named_by_their_path(autoprune: Run, checked_run: Path) -> None:
    trial = f"trial-{best_on_front(checked_run):04d}"
    policy, folder = checked_run / f"policies/{trial}.yaml", checked_run / f"recovered/{trial}"
    printed = json.loads(autoprune("latency", policy, folder, "--repeats", "1", "--json").out)
    assert list(printed["detectors"]) == [f"policies/{trial}.yaml", f"recovered/{trial}"]


def test_a_recorded_latency_is_in_the_card(autoprune: Run, checked_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(best_recovered(checked_run), tmp_path / "detector"))
    dense = Policy.load(folder / "policy.yaml").model
    card = folder / "MODEL_CARD.md"
    assert card.read_text().count("batch 1, 128x128") == 1  # measured by the recovery
    flags = ["--model-arguments", json.dumps(dense.arguments), "--num-classes", str(dense.num_classes)]
    outcome = autoprune("latency", dense.name, folder, *flags, "--batch", "3", "--repeats", "2", "--record")
    assert outcome.code == 0, outcome.err
    assert "batch 3, 128x128" in card.read_text()
    (row,) = (row for row in json.loads((folder / "latency.json").read_text()) if "batch 3" in row["label"])
    assert row["dense_ms"] > 0


def test_each_detector_says_the_size_that_its_network_sees(
    autoprune: Run, checked_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(best_recovered(checked_run), tmp_path / "detector"))
    policy = replace(Policy.load(folder / "policy.yaml"), input_size=(96, 96), resize=Resize(96, 96))
    policy.save(folder / "policy.yaml")
    dense = policy.model
    flags = ["--model-arguments", json.dumps(dense.arguments), "--num-classes", str(dense.num_classes)]
    arguments = ["latency", dense.name, folder, *flags, "--repeats", "1"]
    outcome = autoprune(*arguments, "--batch", "3", "--record")
    shown = {cells[0]: cells[1] for cells in map(str.split, outcome.out.splitlines()) if len(cells) > 6}
    assert shown[dense.name] == "128x128"
    assert shown[f"{tmp_path.name}/detector"] == "96x96"
    assert "batch 3, 128x128;" in outcome.out
    (row,) = (row for row in json.loads((folder / "latency.json").read_text()) if "batch 3" in row["label"])
    assert row["label"].endswith("batch 3, 128x128, which the detector itself makes 96x96")
    assert row["dense_network_size"] == [128, 128]
    printed = json.loads(autoprune(*arguments, "--json").out)
    assert list(printed["network_sizes"].values()) == [[128, 128], [96, 96]]
    alone = json.loads(autoprune("latency", folder, "--repeats", "1", "--json").out)
    assert alone["label"].endswith("batch 1, 96x96")


def test_the_time_of_another_detector_is_not_taken_for_that_of_the_dense_one(
    autoprune: Run, checked_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(best_recovered(checked_run), tmp_path / "detector"))
    dense = Policy.load(folder / "policy.yaml").model
    policy = checked_run / f"policies/trial-{best_on_front(checked_run):04d}.yaml"
    more = ["--model-arguments", json.dumps(dense.arguments)]
    for other, flags, reason in (
        (policy, [], "it is pruned"),
        (dense.name, more, f"its num_classes is 91, not {dense.num_classes}"),
    ):
        arguments = ("--size", "64x64", "--repeats", "1", "--warmup-passes", "0", "--record")
        outcome = autoprune("latency", other, folder, *flags, *arguments)
        assert f"is not the dense detector of {folder}, whose card is without: {reason}" in outcome.out
        (row,) = (row for row in json.loads((folder / "latency.json").read_text()) if "64x64" in row["label"])
        assert "dense_ms" not in row


def test_every_runtime_of_the_table_can_be_chosen() -> None:
    choices, _ = get_args(COMMANDS["latency"][0].__annotations__["runtime"])
    assert get_args(choices) == tuple(RUNTIMES)


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ([TINY.name], ["given twice"]),
        (["--device", "cuda:99"], ["cuda:99", "--device"]),
        (["--runtime", "tensorrt"], ["--runtime", "openvino"]),
        (["--size", "64"], ["--size", "800x1344"]),
        (["--batch", str(10**18)], ["--batch", "65536"]),
        (["--record"], ["--record", "folders"]),
        (["--size", "64x64", "--batch", "100000000"], ["--batch", "65536"]),
    ],
)
def test_what_can_not_be_timed_is_refused(autoprune: Run, flags: list[str], fragments: list[str]) -> None:
    assert autoprune("latency", TINY.name, *flags).is_refusal(*fragments)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_batch_that_memory_can_not_hold_is_refused_before_it_fills_it(
    autoprune: Run, tiny_model: list[str], runtime: str
) -> None:
    """At the size that this detector resizes images to, the batch takes three petabytes."""
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    flags = [*tiny_model[2:], "--runtime", runtime, "--size", "64x64", "--batch", "65536"]
    huge = ["--model-arguments", json.dumps({"min_size": 60_000, "max_size": 60_000})]
    outcome = autoprune("latency", TINY.name, *flags, *huge)
    assert outcome.is_refusal(
        "out of memory at --batch 65536 of 64x64 pixels on cpu", "lower --batch or --size"
    )


def test_the_extra_of_a_missing_runtime_is_named(
    autoprune: Run, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras, "import_module", missing)
    arguments = ["latency", TINY.name, *tiny_model[2:], "--size", "64x64"]
    assert autoprune(*arguments, "--runtime", "openvino").is_refusal("autoprune[")
