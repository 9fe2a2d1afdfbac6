"""What a user names on the command line becomes the detector meant: a name, a policy file, or a folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune import progress
from autoprune.cli.detectors import (
    build_dense,
    config_of_run,
    input_size_of,
    open_split,
    resolve,
    resolve_all,
    with_dense,
)
from autoprune.cli.terminal import output
from autoprune.config import Config, make_config
from autoprune.detectors import build, load_state
from autoprune.errors import ConfigError, PolicyError
from autoprune.policy import Policy

from .conftest import TINY, best_on_front, best_recovered


def config(**changes: Any) -> Config:
    return make_config(model=TINY.name, model_arguments=TINY.arguments, **changes)


@pytest.mark.parametrize(("norm", "kind"), [("auto", "batch"), ("train", "batch"), ("freeze", "frozen")])
def test_a_name_takes_its_arguments_from_the_settings(norm: str, kind: str) -> None:
    detector = resolve(None, config(num_classes=4, norm=norm))
    assert (detector.label, detector.policy, detector.folder) == (TINY.name, None, None)
    assert (detector.spec.name, detector.spec.arguments) == (TINY.name, TINY.arguments)
    assert (detector.spec.num_classes, detector.spec.norm) == (4, kind)
    other = resolve("fcos_resnet18_fpn", config())
    assert (other.label, other.spec.name, other.spec.num_classes) == ("fcos_resnet18_fpn",) * 2 + (91,)


def test_a_librarys_file_brings_its_weights_and_is_the_model_whose_classes_count(tmp_path: Path) -> None:
    (tmp_path / "best.pt").touch()
    name = f"ultralytics:{tmp_path / 'best.pt'}"
    dense = with_dense(resolve(name, config()), config())
    assert (dense.model, dense.weights) == (name, str(tmp_path / "best.pt"))
    given = config(weights="other.pt")
    assert with_dense(resolve(name, given), given).weights == "other.pt"
    assert with_dense(resolve(None, given), given) == given


def test_a_policy_and_its_folder_bring_their_own_model(checked_run: Path) -> None:
    file = checked_run / f"policies/trial-{best_on_front(checked_run):04d}.yaml"
    folder = best_recovered(checked_run)
    of_file, of_folder = (resolve(str(path), config()) for path in (file, folder))
    assert of_file.label == f"policies/{file.name}"
    assert of_folder.label == f"recovered/{folder.name}"
    assert (of_file.folder, of_folder.folder) == (None, folder)
    for detector, path in ((of_file, file), (of_folder, folder / "policy.yaml")):
        assert detector.policy == Policy.load(path)
        assert detector.spec == Policy.load(path).model


def test_a_path_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no policy\.yaml; give"):
        resolve(str(tmp_path), config())


def test_a_folder_of_transformers_is_named_as_the_library_reads_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match=f"no policy.yaml.*--model transformers:{tmp_path}$"):
        resolve(str(tmp_path), config())


@pytest.mark.parametrize("there", [True, False])
def test_a_librarys_file_without_the_name_of_the_library_is_hinted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, hints in {
        "best.pt": ["ultralytics:best.pt or libreyolo:best.pt", "--weights best.pt"],
        "yolo11n.yaml": ["ultralytics:yolo11n.yaml"],
        "rtdetr-l.yaml": ["ultralytics:rtdetr-l.yaml"],
    }.items():
        if there:
            Path(name).write_text("nc: 80\nbackbone: []\nhead: []\n")
        with pytest.raises(ConfigError) as refused:
            resolve(name, config())
        assert all(hint in str(refused.value) for hint in hints)
    named = Path("yolo11n.yaml").resolve()  # a policy may have such a name
    named.write_text("format: 1\ngroups: {}\n")
    with pytest.raises(PolicyError):
        resolve(str(named), config())


def test_the_dense_detector_is_that_of_the_policy_with_the_weights_of_the_user(
    checked_run: Path, demo_settings: dict[str, Any]
) -> None:
    detector = resolve(str(best_recovered(checked_run)), config())
    # the settings name the tiny detector; the policy wins
    model, spec = build_dense(detector, config(weights=demo_settings["weights"]))
    assert spec == detector.spec
    state = load_state(Path(demo_settings["weights"]))
    assert all(torch.equal(value, state[name].float()) for name, value in model.state_dict().items()
               if value.is_floating_point())  # fmt: skip


class Unsized(torch.nn.Module):
    """A detector that states no input size."""


def test_fresh_weights_follow_the_seed() -> None:
    detector = resolve(None, config())
    states = [build_dense(detector, config(seed=seed))[0].state_dict() for seed in (1, 1, 2)]
    name = "backbone.body.conv1.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        (lambda: build(TINY), {}, (64, 64)),
        (lambda: build(TINY), {"input_size": (96, 128)}, (96, 128)),
        (Unsized, {"input_size": (96, 128)}, (96, 128)),
    ],
)
def test_the_input_size_is_the_users_or_the_detectors(
    model: Callable[[], torch.nn.Module], settings: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert input_size_of(resolve(None, config()), model(), config(**settings)) == expected


def test_a_policy_brings_its_input_size(checked_run: Path) -> None:
    detector = resolve(str(best_recovered(checked_run)), config())
    assert input_size_of(detector, Unsized(), config()) == (128, 128)


def test_a_size_that_is_assumed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.show(output()):
        assert input_size_of(resolve(None, config()), Unsized(), config()) == (640, 640)
    assert "640x640 is assumed; --input-size sets another" in capsys.readouterr().out


def test_images_of_a_split_have_the_size_of_the_detector(tiny_data: Path) -> None:
    model = build(TINY)
    large = build(TINY.model_copy(update={"arguments": {**TINY.arguments, "min_size": 96, "max_size": 96}}))
    for detector, size in ((model, (64, 64)), (large, (96, 96))):
        split = open_split(config(data=tiny_data), "test", detector)
        assert (len(split), split.most_common_size) == (4, size)


def test_a_recovered_folder_knows_its_run_and_others_do_not(checked_run: Path, tmp_path: Path) -> None:
    run = config_of_run(best_recovered(checked_run))
    assert run is not None
    assert (run.steps, run.check_proxies) == (2, 4)
    assert config_of_run(tmp_path) is None
    assert config_of_run(checked_run / "policies" / "x") is None


def test_detectors_of_one_name_have_labels_that_tell_them_apart(checked_run: Path, tmp_path: Path) -> None:
    folder = best_recovered(checked_run)
    copy = Path(shutil.copytree(folder, tmp_path / "recovered" / folder.name))
    named = resolve_all([str(folder), str(copy), TINY.name], config(), set())
    assert [detector.label for detector in named] == [str(folder), str(copy), TINY.name]
    with pytest.raises(ConfigError, match="given twice"):
        resolve_all([str(folder), f"{folder}/../{folder.name}"], config(), set())


FLAGS = {"model", "model_arguments", "num_classes", "weights", "weights_key"}


def test_flags_that_no_detector_takes_are_refused(checked_run: Path) -> None:
    file = str(checked_run / f"policies/trial-{best_on_front(checked_run):04d}.yaml")
    folder = str(best_recovered(checked_run))
    taken = {
        (): FLAGS,
        (TINY.name,): FLAGS - {"model"},
        (file,): {"weights", "weights_key"},
        (folder,): set(),
    }
    taken[folder, file] = {"weights", "weights_key"}
    taken[folder, TINY.name] = FLAGS - {"model"}
    for arguments, useful in taken.items():
        for name in FLAGS:
            if name in useful:
                assert resolve_all(arguments, config(), {name, "data"})
            else:
                with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} does nothing with"):
                    resolve_all(arguments, config(), {name, "data"})
