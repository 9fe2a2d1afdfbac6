"""What each writing of a field means, worked out by hand."""

import math

import pytest

from autoprune.records.fields import (
    box,
    flag,
    identity,
    is_absent,
    is_absent_box,
    number,
    printable,
    shown,
    whole,
)

UNREADABLE = ("", " ", "wide", "nan", "inf", "1e999", "1,5", "1_0", "٣", None, True, False, [], {}, [1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(640, 640), (640.5, 640.5), ("640", 640), (" 640.5 ", 640.5), ("-1e2", -100), ("+.5", 0.5), (0, 0)],
)
def test_a_number_may_be_a_text(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize("value", [*UNREADABLE, math.nan, math.inf, -math.inf, 10**400, "9" * 5000])
def test_what_is_no_finite_number(value):
    assert number(value) is None


def test_whole_numbers():
    assert [whole(each) for each in (3, 3.0, "3", "3.0", -1)] == [3, 3, 3, 3, -1]
    assert [whole(each) for each in (3.5, "3.5", 2.0**60, *UNREADABLE)] == [None] * (3 + len(UNREADABLE))


@pytest.mark.parametrize("value", [None, -1, 0, -1.0, 0.0, "-1", "0", "", " ", "null", "None", math.nan])
def test_sizes_and_areas_that_are_not_given(value):
    assert is_absent(value)


@pytest.mark.parametrize("value", [1, "1", -2, "wide", [], True])
def test_sizes_and_areas_that_are_given(value):
    assert not is_absent(value)


@pytest.mark.parametrize("value", [None, 0, 0.0, "0", "0.0", "false", "False", "", "no", "null", False, -1])
def test_flags_that_are_not_set(value):
    assert flag(value) is False


@pytest.mark.parametrize("value", [1, 1.0, "1", "true", "True", "yes", True])
def test_flags_that_are_set(value):
    assert flag(value) is True


@pytest.mark.parametrize("value", [2, "maybe", [], {}, [1], 0.5])
def test_flags_that_say_neither(value):
    assert flag(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        ("7.0", 7),
        (" 7 ", 7),
        ("007", "007"),
        ("5e3f", "5e3f"),
        ("1e5", "1e5"),
        (-3, -3),
        (10**30, 10**30),
    ],
)
def test_ids(value, expected):
    assert identity(value) == expected
    assert type(identity(value)) is type(expected)


@pytest.mark.parametrize("value", [None, "", " ", 1.5, math.nan, math.inf, True, [], {}])
def test_what_is_no_id(value):
    assert identity(value) is None


def test_boxes():
    for value in ([1, 2, 3, 4], ["1", "2.0", 3, "4"], "[1, 2, 3, 4]", "1,2,3,4", "1 2 3 4", "(1, 2, 3, 4)"):
        assert box(value) == (1, 2, 3, 4)
    for value in (
        [1, 2, 3],
        [1, 2, 3, None],
        [1, 2, 3, math.nan],
        "1 2 3",
        "a b c d",
        None,
        {},
        [[1, 2, 3, 4]],
    ):
        assert box(value) is None


def test_boxes_that_are_not_given():
    for value in (None, [], "", "[]", [0, 0, 0, 0], [0.0] * 4, "0 0 0 0", [-1, -1, -1, -1]):
        assert is_absent_box(value)
    for value in ([0, 0, 1, 0], [0, 0], "wide", [math.nan] * 4):
        assert not is_absent_box(value)


def test_values_in_messages_are_one_printable_line():
    assert shown({"a": "猫\n\ud800"}) == '{"a": "猫\\\\n\\ud800"}'.replace("\\\\", "\\")
    assert len(shown(list(range(1000)))) == 60
    assert printable("a\nb\x1b") == "a\\nb\\x1b"
