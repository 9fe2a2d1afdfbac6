"""`export` writes a folder that stands alone and is read back, and refuses formats that make no sense."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.detectors import detector_inputs
from autoprune.errors import ConfigError
from autoprune.export import load
from autoprune.policy import Policy
from autoprune.run.documents import load_run_config

from .conftest import best_recovered, recovered_maps

Run = Callable[..., Any]


def outputs(folder: Path) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return dict(load(folder)(*detector_inputs((128, 128)))[0])


def test_a_run_gives_its_best_recovered_detector(
    autoprune: Run, checked_run: Path, run_data: Path, tmp_path: Path
) -> None:
    folder, source = tmp_path / "detector", best_recovered(checked_run)
    outcome = autoprune("export", checked_run, "--to", folder)
    assert outcome.code == 0, outcome.err
    assert "identical" in outcome.out
    first, second = outputs(source), outputs(folder)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("policy.yaml", "metrics.json", "latency.json"):
        assert (folder / name).read_text() == (source / name).read_text()
    # a recovered folder knows the data of its run; an exported one has to be told, as the next command does
    written = json.loads((source / "metrics.json").read_text())["metrics"]
    for command in (outcome.next_command(), ["eval", "--weights", folder, "--data", run_data]):
        printed = autoprune(*command, "--batch-size", "2", "--json")
        assert printed.code == 0, printed.err
        assert json.loads(printed.out)["metrics"] == pytest.approx(written, abs=1e-6)
    assert autoprune("export", checked_run, "--to", folder).is_refusal("already exists", "--to")


def test_another_trial_and_another_folder_can_be_named(
    autoprune: Run, checked_run: Path, tmp_path: Path
) -> None:
    trial = min(recovered_maps(checked_run), key=lambda trial: recovered_maps(checked_run)[trial])
    source = checked_run / f"recovered/trial-{trial:04d}"
    for number, arguments in enumerate(([checked_run, "--trial", trial], [source])):
        folder = tmp_path / str(number)
        assert autoprune("export", *arguments, "--to", folder).code == 0
        assert (folder / "policy.yaml").read_text() == (source / "policy.yaml").read_text()
    outcome = autoprune("export", source, "--trial", trial, "--to", tmp_path / "x")
    assert outcome.is_refusal("--trial", "run directory", str(source))


def test_onnx_is_compared_on_the_data_of_the_run(autoprune: Run, checked_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    folder = tmp_path / "detector"
    flags = ["--format", "onnx", "--raw-heads", "--threads", "1"]
    outcome = autoprune("export", checked_run, "--to", folder, *flags)
    assert outcome.code == 0, outcome.err
    assert "raw_heads.onnx" in outcome.out
    assert "mAP" in outcome.out
    assert {"policy.yaml", "model.safetensors", "raw_heads.onnx"} <= {path.name for path in folder.iterdir()}
    # the folder stands alone, so images have to be named
    again = ["export", folder, "--to", tmp_path / "again", "--format", "onnx"]
    assert autoprune(*again).is_refusal("real images", "--data", "--images")
    (tmp_path / "empty").mkdir()
    assert autoprune(*again, "--images", tmp_path / "empty").is_refusal("no images in", "--images")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--raw-heads"], ["--raw-heads", "--format onnx"]),
        (["--format", "onnx", "--size", "64x64"], ["--size", "--raw-heads"]),
        (["--format", "onnx", "--raw-heads", "--size", "64"], ["--size", "800x1344"]),
        (["--format", "tflite"], ["--format", "onnx"]),
        (["--images", "."], ["--images", "--format onnx"]),
        (["--format", "onnx", "--threads", "100000"], ["threads", "1024"]),
    ],
)
def test_formats_that_make_no_sense_are_refused(
    autoprune: Run, checked_run: Path, tmp_path: Path, flags: list[str], fragments: list[str]
) -> None:
    assert autoprune("export", checked_run, "--to", tmp_path / "x", *flags).is_refusal(*fragments)
    assert not (tmp_path / "x").exists()


def test_a_trial_that_is_not_recovered_names_the_command(
    autoprune: Run, checked_run: Path, tmp_path: Path
) -> None:
    refused = autoprune("export", checked_run, "--trial", "99", "--to", tmp_path / "x")
    assert refused.is_refusal("no recovered trial 99", f"autoprune recover {checked_run} --trial 99")


def test_weights_that_were_trained_on_elsewhere_make_a_folder_of_their_own(
    autoprune: Run, checked_run: Path, run_data: Path, tmp_path: Path
) -> None:
    source, file, folder = best_recovered(checked_run), tmp_path / "tuned.pt", tmp_path / "tuned"
    tuned = load(source)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.01)
        expected = tuned(*detector_inputs((128, 128)))[0]
    torch.save({"model": tuned.state_dict()}, file)
    outcome = autoprune("export", source, "--weights", file, "--to", folder)
    assert outcome.code == 0, outcome.err
    assert f"of {source} with the weights of {file}" in " ".join(outcome.out.split())
    assert all(torch.equal(outputs(folder)[name], expected[name]) for name in expected)
    assert not (folder / "metrics.json").exists()
    assert (folder / "latency.json").exists()
    assert "Not measured: `autoprune eval`" in (folder / "MODEL_CARD.md").read_text()
    assert "map" not in Policy.load(folder / "policy.yaml").metrics
    first, second = (
        json.loads(autoprune("eval", *arguments, "--data", run_data, "--json").out)
        for arguments in ([folder], [source, "--weights", file])
    )
    assert first == second
    dense = load_run_config(checked_run / "config.yaml").weights
    for command in (["export", source, "--to", tmp_path / "x"], ["eval", source]):
        refused = autoprune(*command, "--weights", dense)
        assert refused.is_refusal("keys differ", "give weights of this pruned detector")
    refused = autoprune("export", source, "--weights-key", "ema", "--to", tmp_path / "x")
    assert refused.is_refusal("--weights-key", "without --weights")


def test_a_broken_file_of_a_recovery_is_named(autoprune: Run, run_copy: Path, tmp_path: Path) -> None:
    file = best_recovered(run_copy) / "metrics.json"
    file.write_text("{")
    assert autoprune("export", run_copy, "--to", tmp_path / "x").is_refusal(str(file), "can't be read")


@pytest.mark.parametrize("broken", ["policy.yaml", "model.safetensors", "MODEL_CARD.md"])
def test_an_export_that_fails_leaves_nothing(
    autoprune: Run, checked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The disk is full at one file; then it is not, and the same command works."""

    def full(path: Path) -> None:
        if path.name == broken:
            raise OSError(errno.ENOSPC, "No space left on device")

    command = ["export", best_recovered(checked_run), "--to", tmp_path / "deep/x"]
    with monkeypatch.context() as patch:
        replace = Path.replace
        patch.setattr(Path, "replace", lambda self, target: (full(Path(target)), replace(self, target))[1])
        failed = autoprune(*command)
    assert failed.is_refusal("the disk is full", broken)
    assert not list(tmp_path.iterdir())
    assert autoprune(*command).code == 0


def test_a_detector_without_its_policy_is_said_to_lack_it_as_by_eval(
    autoprune: Run, run_copy: Path, tmp_path: Path
) -> None:
    folder = best_recovered(run_copy)
    (folder / "policy.yaml").unlink()
    exported, evaluated = autoprune("export", folder, "--to", tmp_path / "x"), autoprune("eval", folder)
    for outcome in (exported, evaluated):
        assert outcome.is_refusal(f"{folder} holds no policy.yaml; give", "`autoprune recover`")


def test_a_folder_that_is_no_run_is_refused(autoprune: Run, tmp_path: Path) -> None:
    outcome = autoprune("export", tmp_path, "--to", tmp_path / "x")
    assert outcome.is_refusal(str(tmp_path), "not a run directory")
    assert not list(tmp_path.iterdir())


def test_another_size_than_the_only_one_is_refused() -> None:
    from autoprune.cli.export import _given_size
    from autoprune.config import ModelSpec
    from autoprune.detectors import build

    ssd = build(ModelSpec(name="ssdlite320_mobilenet_v3_large", num_classes=2))
    assert _given_size("320x320", ssd) == (320, 320)
    with pytest.raises(ConfigError, match=r"--size 320x640: this detector takes 320x320 pixels alone"):
        _given_size("320x640", ssd)
