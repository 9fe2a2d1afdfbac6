"""Strict models, old spellings of keys, and problems in one line."""

import warnings

import pytest
from pydantic import Field, ValidationError

from autoprune.errors import ConfigError
from autoprune.validation import Strict, brief, first_problem, warn_renamed, with_new_keys


class Inner(Strict):
    width: int = Field(ge=1)


class Model(Strict):
    trials: int = 3
    inner: Inner = Inner(width=1)


def problem(content, where="c.yaml"):
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(content)
    text = first_problem(caught.value, Model, where)
    assert "\n" not in text
    return text


def test_a_strict_model_is_frozen():
    with pytest.raises(ValidationError):
        Model().trials = 4


def test_an_unknown_key_names_the_nearest_or_all():
    assert problem({"trial": 5}) == "unknown key `trial` in c.yaml; valid keys: trials"
    assert problem({"zzz": 5}) == "unknown key `zzz` in c.yaml; valid keys: trials, inner"


def test_an_unknown_key_comes_before_what_it_may_stand_for():
    assert problem({"inner": {"widht": 5}}) == "unknown key `inner.widht` in c.yaml; valid keys: width"
    assert problem({"trials": "many", "trial": 5}).startswith("unknown key `trial`")


def test_a_wrong_value_is_named_with_its_place_and_what_stood_there():
    text = problem({"inner": {"width": 0}})
    assert text.startswith("c.yaml: `inner.width`: ")
    assert text.endswith("(got 0)")
    assert problem({"inner": {}}).startswith("c.yaml: `inner.width`: ")
    assert "got" not in problem({"inner": {}}), "what is missing has no value"
    assert problem({"inner": 5}) == "c.yaml: `inner`: Input should hold the keys width (got 5)"


def test_a_long_value_is_cut():
    assert brief("a\nb") == r"'a\nb'"
    assert brief("x" * 1000) == f"'{'x' * 78}…"


def test_old_keys_become_new_ones_with_a_warning_of_one_line_each():
    given = {"attempts": 5, "chance": 3, "model": "a"}
    renamed = {"attempts": "trials", "chance": "seed", "gone": "model"}
    with pytest.warns(UserWarning, match="old spelling") as caught:
        assert with_new_keys(given, renamed, "c.yaml") == {"trials": 5, "seed": 3, "model": "a"}
    assert given == {"attempts": 5, "chance": 3, "model": "a"}, "the argument is unchanged"
    assert [str(warning.message) for warning in caught] == [
        f"c.yaml: `{old}` is now `{new}`; the old spelling goes with the next version"
        for old, new in (("attempts", "trials"), ("chance", "seed"))
    ]


def test_new_keys_pass_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_new_keys({"trials": 5}, {"attempts": "trials"}, "c.yaml") == {"trials": 5}


def test_both_spellings_of_a_key_are_refused():
    with pytest.raises(
        ConfigError, match=r"^c\.yaml: `attempts` is the old spelling of `trials`; give only `trials`$"
    ):
        with_new_keys({"attempts": 5, "trials": 6}, {"attempts": "trials"}, "c.yaml")


def test_a_renamed_flag_has_no_file_to_name():
    with pytest.warns(UserWarning, match="^--old is now --new; the old spelling"):
        warn_renamed("--old", "--new")


def test_a_value_is_shown_without_its_password():
    assert brief(["postgresql://me:secret@host/db"]) == "['postgresql://me:***@host/db']"
