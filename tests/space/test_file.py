"""The file is read strictly: what is wrong is refused in one line that says where."""

from pathlib import Path

import pytest

from autoprune.errors import ConfigError
from autoprune.space import file as module
from autoprune.space.file import SpaceFile, ready_space


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("model: m\ninput_size: [8, 8]\nround: 8\ngroups:\n  - {match: '*', max_ratio: 0.5}\n")
    with pytest.raises(ConfigError, match=r"unknown key `round` in .*space\.yaml; valid keys: round_to"):
        SpaceFile.load(path)
    path.write_text("model: m\ninput_size: [8, 8]\ngroups:\n  - {match: '*', max_rato: 0.5}\n")
    with pytest.raises(ConfigError, match=r"unknown key `groups\.0\.max_rato` in .*; valid keys: max_ratio"):
        SpaceFile.load(path)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("max_ratio: 1.1", "less than or equal to 1"),
        ("max_ratio: 0", "greater than 0"),
        ("max_ratio: much", "valid number"),
        ("tie: a", "either max_ratio"),
        ("frozen: true, max_ratio: 0.5", "either max_ratio"),
        ("frozen: true, tie: a", "frozen: omit"),
        ("frozen: true, round_to: 8", "omit tie, min_width and round_to"),
        ("max_ratio: 0.5, min_width: 0", "greater than or equal to 1"),
        ("max_ratio: 0.5, min_width: true", "must not be true or false"),
        ("max_ratio: true", "must not be true or false"),
        (f"max_ratio: 0.5, round_to: {10**30}", "less than or equal to 65536"),
    ],
)
def test_a_bad_entry_is_refused_in_one_line(tmp_path: Path, rule: str, problem: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"model: m\ninput_size: [8, 8]\ngroups:\n  - {{match: 'body.*', {rule}}}\n")
    with pytest.raises(ConfigError, match=problem) as error:
        SpaceFile.load(path)
    assert "\n" not in str(error.value)
    assert "groups.0" in str(error.value)


def test_a_file_that_was_cut_says_how_to_have_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("model: m\ninput_size: [64, 64]\n")
    with pytest.raises(
        ConfigError, match=r"space\.yaml: `groups`: Field required; .*write one with `autoprune space`"
    ):
        SpaceFile.load(path)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="not a search space"):
        SpaceFile.load(path)


def test_there_is_no_ready_space_for_an_unknown_model() -> None:
    assert ready_space("no_such_detector") is None


def test_ready_spaces_are_found_beside_the_installed_modules(tmp_path: Path, monkeypatch) -> None:
    """pyproject.toml puts search_spaces/ into the wheel as autoprune/search_spaces/."""
    (tmp_path / "autoprune" / "search_spaces").mkdir(parents=True)
    expected = tmp_path / "autoprune" / "search_spaces" / "retinanet_resnet50_fpn_coco.yaml"
    expected.write_text("")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "autoprune" / "search" / "space_file.py"))
    assert ready_space("retinanet_resnet50_fpn") == expected
