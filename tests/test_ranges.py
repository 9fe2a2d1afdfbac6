"""Kept channels as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.ranges import from_ranges, to_ranges


@given(st.sets(st.integers(0, 300)))
def test_ranges_read_back(indices):
    rising = sorted(indices)
    assert from_ranges(to_ranges(rising)) == tuple(rising)


def test_ranges_are_written_as_people_do():
    assert to_ranges([0, 1, 2, 3, 4, 5, 8, *range(11, 64)]) == "0-5,8,11-63"


@pytest.mark.parametrize("text", ["", "3-1", "1,1", "5,2", "a", "1-", "-1"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"must rise|invalid literal"):
        from_ranges(text)


def test_a_range_that_would_take_all_memory_is_refused():
    with pytest.raises(ValueError, match="a channel is below 10000000"):
        from_ranges("0-99999999999999999")


def test_no_channels_are_a_word():
    assert to_ranges([]) == "none"
    assert from_ranges(" none ") == ()
