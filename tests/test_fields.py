"""How the texts of settings are read, and what their metadata adds to the schema."""

import json
from typing import Annotated, get_args

import pytest
from pydantic import ValidationError

from autoprune.config import Config, make_config
from autoprune.errors import ConfigError
from autoprune.fields import BUDGET_NUMBER, DataPaths, ModelSpec, Norm, NormKind, Setting
from autoprune.validation import Strict

SPLITS = {name: {"annotations": "a.json", "images": "pictures"} for name in ("train", "val")}


@pytest.mark.parametrize("given", ["50%,33%", "50%, 33%", ["50%", "33%"], ("50%", "33%")])
def test_several_values_come_as_one_text_or_a_list(given):
    assert make_config(budget_gflops=given).budget_gflops == ("50%", "33%")


@pytest.mark.parametrize("given", [" , ", "50%,", ",50%", "50%,,33%"])
def test_a_text_that_holds_an_empty_value_is_refused(given):
    with pytest.raises(ConfigError, match="`budget_gflops`: must hold values, separated by commas"):
        make_config(budget_gflops=given)


@pytest.mark.parametrize("number", [50, 12.5])
def test_numbers_are_texts_where_a_percentage_is_possible(number):
    config = make_config(budget_gflops=[number, "33%"], budget_mparams=number)
    assert config.budget_gflops == (str(number), "33%")
    assert config.budget_mparams == str(number)
    assert make_config(budget_gflops=number).budget_gflops == (str(number),)


@pytest.mark.parametrize("given", ["12.5", "60%", " 60 % ", 12, "1e3", "150"])
def test_a_budget_on_latency_is_a_time_or_a_percentage(given):
    assert make_config(budget_latency_ms=given).budget_latency_ms == str(given)


@pytest.mark.parametrize("text", ["fast", "0", "-3", "100%", "60%%", "%"])
def test_any_other_budget_on_latency_is_refused(text):
    with pytest.raises(
        ConfigError, match=r"`budget_latency_ms`: must be milliseconds such as 12\.5"
    ) as error:
        make_config(budget_latency_ms=text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [0.2, "0.2", "20%", " 20 % ", "2e1%", ".2"])
def test_a_fraction_may_be_a_percentage(given):
    assert make_config(val_fraction=given).val_fraction == pytest.approx(0.2, abs=1e-15)


@pytest.mark.parametrize(
    "given", [20, "20", "0%", "100%", "-20%", "1", 0, "%", "20%%", "a fifth", [0.2], "nan"]
)
def test_any_other_fraction_is_refused_with_the_form_to_type(given):
    with pytest.raises(ConfigError, match=r"`val_fraction`: .* such as 0\.2, or a percentage such as 20%"):
        make_config(val_fraction=given)


@pytest.mark.parametrize("text", ["7", "7.", ".5", "+1.25", "1e3", "2E-1"])
def test_a_budget_number_is_one_that_python_reads(text):
    assert BUDGET_NUMBER.fullmatch(text)
    assert float(text) > 0


@pytest.mark.parametrize("text", ["", ".", "-1", "nan", "inf", "1_000", "0x1", "1e", "12 "])
def test_what_is_no_plain_positive_number_is_no_budget(text):
    assert not BUDGET_NUMBER.fullmatch(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", "inf"), ("image_cache_gib", "1e400"), ("batch_size", 10**12), ("input_size", [1, -1])],
)
def test_no_setting_is_infinite_or_beyond_what_a_machine_holds(name, value):
    with pytest.raises(ConfigError, match=f"`{name}"):
        make_config(**{name: value})


def test_none_is_no_tracker():
    assert make_config(track="none").track == ()
    assert make_config(track=["none"]).track == ()
    with pytest.raises(ConfigError, match="track"):
        make_config(track="none,mlflow")


def test_metadata_of_a_setting_is_in_the_schema():
    class Settings(Strict):
        here: Annotated[int, Setting("Machine", may_change=True)] = 3
        there: Annotated[str, Setting("Data")] = "a"

    properties = Settings.model_json_schema()["properties"]
    assert [properties[name]["panel"] for name in ("here", "there")] == ["Machine", "Data"]
    assert [properties[name]["may_change_on_resume"] for name in ("here", "there")] == [True, False]
    assert properties["here"]["default"] == 3
    json.dumps(properties)


def test_every_treatment_of_the_norms_is_a_kind_of_norm():
    kinds = {norm: make_config(norm=norm).norm_kind for norm in get_args(Norm)}
    assert kinds == {"auto": "auto", "freeze": "frozen", "train": "batch"}
    assert {*kinds.values()} == {"auto", *get_args(NormKind)}


@pytest.mark.parametrize(
    ("kind", "content", "wrong"),
    [
        (ModelSpec, {"name": "a"}, "num_classes"),
        (ModelSpec, {"name": "a", "num_classes": 1}, "num_classes"),
        (ModelSpec, {"name": "a", "num_classes": 2, "norm": "group"}, "norm"),
        (DataPaths, {"train": {"annotations": "a.json", "images": "a"}}, "val"),
        (DataPaths, {"train": {"annotations": "a.json"}, "val": {}}, "images"),
        (DataPaths, {**SPLITS, "test": {"annotations": "a.json"}}, r"test\.images"),
    ],
)
def test_an_incomplete_specification_is_refused(kind, content, wrong):
    with pytest.raises(ValidationError, match=wrong):
        kind.model_validate(content)


def test_data_is_a_folder_or_paths_of_splits():
    config = make_config(data={**SPLITS, "test": SPLITS["val"]})
    assert isinstance(config.data, DataPaths)
    assert dict(config.data)["test"] == config.data.val
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert str(make_config(data="a/folder").data) == "a/folder"


@pytest.mark.parametrize("given", ["100%,75%,0.5", ["1", "75 %", 0.5], (1, 0.75, "50%")])
def test_input_sizes_are_fractions_or_percentages(given):
    assert make_config(input_sizes=given).input_sizes == (1.0, 0.75, 0.5)
    with pytest.raises(ConfigError, match="input_sizes"):
        make_config(input_sizes="100%,75%%")
