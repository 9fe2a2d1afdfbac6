"""One flat model of settings, each with one source for its type, limits, default, help and metadata."""

import ast
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch

from autoprune import config as module
from autoprune.config import (
    MAY_CHANGE,
    SETTINGS,
    Config,
    load_config,
    make_config,
)
from autoprune.cost.budget import UNITS
from autoprune.errors import ConfigError
from autoprune.fields import Objective
from autoprune.study.storage import METRIC_NAMES

ROOT = Path(__file__).parent.parent
SPLITS = {name: {"annotations": "a", "images": "b"} for name in ("train", "val")}


def test_defaults_mean_retinanet_on_coco():
    config = make_config(budget_gflops="50")
    assert (config.model, str(config.data), config.budget_gflops) == (
        "retinanet_resnet50_fpn",
        "data/coco",
        ("50",),
    )


def test_a_bare_number_is_a_budget(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("budget_gflops: 50\nbudget_mparams: 12.5\nrungs: [0, 20]\n")
    config = load_config(path)
    assert (config.budget_gflops, config.budget_mparams, config.rungs) == (("50",), "12.5", (0, 20))


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("trials: 5\nseed: 3\n")
    config = load_config(path, trials=9, model=None)
    assert (config.trials, config.seed, config.model) == (9, 3, Config.model_fields["model"].default)


def test_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("budget_gflop: 50\n")
    with pytest.raises(
        ConfigError, match=r"unknown key `budget_gflop` in .*c\.yaml; valid keys: budget_gflops"
    ):
        load_config(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trials": 0}, "`trials`"),
        ({"rungs": [20, 0]}, "rungs must increase"),
        ({"objectives": ["gflops"]}, "objectives must hold map"),
        ({"objectives": ["map", "gflops", "map"]}, "objectives holds one of them twice"),
        ({"sampler": "best"}, "`sampler`"),
        ({"input_size": [800]}, "`input_size"),
        ({"input_sizes": [0.5]}, "must hold 1.0, the detector's own input size"),
        ({"input_sizes": [1.0, 1.5]}, "above 0 and at most 1"),
        ({"input_sizes": "1.0,0"}, "above 0 and at most 1"),
        ({"input_sizes": "1,0.5,0.5"}, "must hold each fraction once"),
        ({"seed": 2**32}, "`seed`"),
        ({"steps": True}, "`steps`: must not be true or false"),
        ({"learning_rate": False}, "`learning_rate`: must not be true or false"),
        ({"rungs": [True, 50]}, "`rungs`: must not be true or false"),
        ({"budget_gflops": True}, "`budget_gflops`: must not be true or false"),
        ({"data": 3}, "`data`: must be a folder, or the splits `train` and `val`"),
        ({"data": {}}, "`data`: must be a folder"),
        ({"data": {"train": {"annotations": "a", "images": "b"}}}, "`data.val`: Field required"),
        ({"data": {"train": {"annotations": "a"}, "val": {}}}, "`data.train.images`: Field required"),
        (
            {"data": {**SPLITS, "test": {"annotations": "a", "image": "b"}}},
            "unknown key `data.test.image` in",
        ),
        ({"data": {**SPLITS, "test": {"zzz": "b"}}}, "valid keys: annotations, images"),
        ({"data": {**SPLITS, "test": "a"}}, "`data.test`: Input should hold the keys annotations, images"),
    ],
)
def test_bad_values_are_one_line_naming_the_field(values, said):
    with pytest.raises(ConfigError) as caught:
        make_config(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", Config.model_fields)
def test_no_message_names_what_is_inside_python_or_pydantic(name):
    for value in (5.5, "", "x\n" * 200, [[]], {"a": [1]}, {"train": 5, "val": []}, object()):
        with contextlib.suppress(ConfigError):
            make_config(**{name: value})
            continue
        with pytest.raises(ConfigError) as caught:
            make_config(**{name: value})
        line = str(caught.value)
        assert f"`{name}" in line
        assert not re.search("<class|lax|instance of|Paths|pydantic|tuple|dictionary|\n", line), line
        assert len(line) < 400


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}\n", "[]\n", "- 1\n", "steps\n", "5\n"])
def test_a_file_without_settings_is_not_a_config(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml must hold `field: value` lines"):
        load_config(path)


def test_no_data_in_a_file_is_no_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("data: null\n")
    with pytest.raises(ConfigError, match="`data`: must be a folder"):
        load_config(path)


# one source for each setting


def test_each_setting_has_its_panel_and_the_schema_shows_it():
    properties = Config.model_json_schema()["properties"]
    assert properties.keys() == SETTINGS.keys() == Config.model_fields.keys()
    for name, setting in SETTINGS.items():
        assert properties[name]["panel"] == setting.panel
        assert properties[name]["may_change_on_resume"] is (name in MAY_CHANGE)
        assert properties[name]["description"]


def test_a_resumed_run_may_change_where_and_how_long_it_runs_and_nothing_else():
    where = {
        "out",
        "data",
        "weights",
        "weights_key",
        "device",
        "threads",
        "engine",
        "address",
        "workers",
        "cpus_per_trial",
        "gpus_per_trial",
    }
    how_long = {"trials", "steps", "check_proxies", "confirm"}
    assert where | how_long | {"image_cache_gib", "strict", "evaluator", "track"} == MAY_CHANGE


OTHER_MEANING = {
    ("Record", "rungs"): "metrics of a trial",
    ("TraceConstraints", "steps"): "steps of slices",
    ("ModelSpec", "num_classes"): "a limit alone",
    ("Policy", "labels"): "by label, and none in old policies",
    ("PolicyFile", "labels"): "by label, and none in old policies",
    ("ModelSpec", "norm"): "a kind of norm, not its treatment in training",
    ("measure", "warmup"): "calls before those that are timed",
    ("interleaved", "warmup"): "calls before those that are timed",
    ("TrainSettings", "learning_rate"): "a baseline's, which `Config` leaves open",
    ("schema", "space"): "a flag",
    ("doctor", "out"): "the folder of all runs",
    ("demo", "out"): "the demo's own folder",
    ("demo", "budget_gflops"): "three budgets, for a front that bends",
}
"""Arguments and attributes that are called like a setting, but are another thing, by their owner."""
ALIASES = {"cache_gib": "image_cache_gib"}


class Default(NamedTuple):
    """A default outside `Config`: the function or class, its argument or attribute, and the expression."""

    owner: str
    name: str
    value: ast.expr


def defaults_in(tree: ast.Module) -> Iterator[Default]:
    """Those of all functions and classes of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args]
            values = node.args.defaults
            pairs = [*zip(arguments[len(arguments) - len(values) :], values, strict=True)]
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            yield from (Default(node.name, argument.arg, value) for argument, value in pairs if value)
        elif isinstance(node, ast.ClassDef) and node.name != "Config":
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and line.value and isinstance(line.target, ast.Name):
                    yield Default(node.name, line.target.id, line.value)


def defaults_elsewhere() -> Iterator[Default]:
    """Those that repeat a setting's; ``None`` leaves it to the caller, and `device` is where tensors are."""
    for path in sorted((ROOT / "autoprune").rglob("*.py")):
        for default in defaults_in(ast.parse(path.read_text(encoding="utf-8"))):
            name = ALIASES.get(default.name, default.name)
            settled = (default.owner, name) in OTHER_MEANING or ast.unparse(default.value) == "None"
            if name in Config.model_fields and name != "device" and not settled:
                yield default._replace(name=name)


def test_a_default_that_is_repeated_elsewhere_is_the_same_there() -> None:
    repeated = list(defaults_elsewhere())
    assert {"TrainSettings", "Cluster", "evaluate", "open_data"} <= {default.owner for default in repeated}
    differing = [
        f"{owner}: {name} = {ast.unparse(value)}"
        for owner, name, value in repeated
        if ast.unparse(value) not in (repr(default_of(name)), f"Field({default_of(name)!r})")
    ]
    assert not differing, "not as in Config; give no default, or a line in OTHER_MEANING"


def default_of(name: str) -> Any:
    return Config.model_fields[name].get_default()


def test_what_has_another_meaning_is_there() -> None:
    owners = {
        (default.owner, default.name)
        for path in (ROOT / "autoprune").rglob("*.py")
        for default in defaults_in(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert OTHER_MEANING.keys() <= owners


def test_defaults_in_the_docs_are_those_of_the_settings() -> None:
    """`--flag` (3), `--flag value` (default), and rows `name` (default) of a table headed by a `--flag`."""
    seen = set()
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        flag = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            if heading := re.match(r"\| `--([a-z-]+)` \|", line):
                flag = heading[1]
            shown = re.findall(r"`--([a-z-]+)` \(([\d.]+)(?: GiB)?\)", line)
            shown += re.findall(r"`--([a-z-]+) ([^`]+)` \(default\)", line)
            if row := re.match(r"\| `(\w+)` \(default\)", line):
                shown.append((flag or "sampler", row[1]))
            for name, value in shown:
                field = name.replace("-", "_")
                seen.add(field)
                (got,) = {getattr(make_config(**{field: value}), field)}
                assert got == default_of(field), f"{path.name}: --{name} {value}"
    assert {"criterion", "sampler", "rungs", "objectives", "confirm", "rung_keep"} <= seen


def test_every_objective_has_a_name_with_its_unit_and_every_budget_a_unit() -> None:
    assert METRIC_NAMES.keys() == set(get_args(Objective))
    budgets = {name.removeprefix("budget_") for name in Config.model_fields if name.startswith("budget_")}
    assert UNITS.keys() == budgets


# renamed keys


@pytest.fixture
def renamed(monkeypatch):
    """As if the previous version had called `trials` and `seed` otherwise."""
    monkeypatch.setattr(module, "RENAMED", {"attempts": "trials", "chance": "seed"})


def test_the_old_spelling_of_a_key_is_read_with_a_warning_of_one_line(renamed, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("attempts: 5\nchance: 3\n")
    with pytest.warns(UserWarning, match="old spelling") as caught:
        config = load_config(path, seed=4)
    assert (config.trials, config.seed) == (5, 4)
    assert [str(warning.message) for warning in caught] == [
        f"{path}: `{old}` is now `{new}`; the old spelling goes with the next version"
        for old, new in (("attempts", "trials"), ("chance", "seed"))
    ]
    with pytest.warns(UserWarning, match="`attempts` is now `trials`"):
        assert make_config(attempts=6).trials == 6


def test_old_names_lead_to_fields():
    assert set(module.RENAMED.values()) <= Config.model_fields.keys()
    assert not module.RENAMED.keys() & Config.model_fields.keys()


class Place:
    """A path of another library."""

    def __fspath__(self):
        return "some/place"


@pytest.mark.parametrize("path", [Path("some/place"), Place()])
def test_any_kind_of_path_is_taken(path):
    config = make_config(weights=path, data=path, out=path, space=path)
    assert config.weights == "some/place"
    assert config.data == config.out == config.space == Path("some/place")


def test_a_device_of_torch_is_taken_by_its_name():
    assert make_config(device=torch.device("cuda", 1)).device == "cuda:1"
    with pytest.raises(ConfigError, match="device"):
        make_config(device=1)


@pytest.mark.parametrize("empty", ["", " ", [""], ["50", ""]])
@pytest.mark.parametrize("name", Config.model_fields)
def test_an_empty_value_is_never_the_same_as_none_given(name, empty):
    if isinstance(empty, str):
        with pytest.raises(ConfigError, match=f"`{name}`: is empty; give a value, or omit it"):
            make_config(**{name: empty})
    with pytest.raises(ConfigError, match=f"`{name}`: is empty"):
        make_config(**{name: empty})


@pytest.mark.parametrize("name", ["out", "data", "space", "weights"])
def test_a_path_that_the_run_could_not_name_is_refused(name):
    with pytest.raises(ConfigError, match=f"`{name}`: is not UTF-8"):
        make_config(**{name: Path(os.fsdecode(b"V\xe9"))})
    make_config(**{name: Path("Vé")})


@pytest.mark.parametrize("value", [",", "50,", ",50", "50,,33"])
@pytest.mark.parametrize("name", ["budget_gflops", "objectives", "rungs", "track", "input_sizes"])
def test_an_empty_value_of_several_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"`{name}`: must hold values, .* and one is empty"):
        make_config(**{name: value})
