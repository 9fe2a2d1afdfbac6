"""Globs choose groups, granularity and ties make variables of them, and widths keep every rule."""

import numpy as np
import pytest

from autoprune.errors import ConfigError
from autoprune.space.file import GroupRule
from autoprune.space.resolve import resolve


def test_a_glob_without_a_group_names_the_nearest(chain, space_file) -> None:
    with pytest.raises(
        ConfigError, match=r"`body\.layr1\.conv` matches no channel group; nearest: body\.layer1\.conv"
    ):
        resolve(space_file(GroupRule(match="body.layr1.conv", max_ratio=0.5)), chain())


def test_a_ratio_for_what_can_not_be_pruned_says_why(chain, space_file) -> None:
    with pytest.raises(ConfigError, match=r"`head\.out` has no consumer"):
        resolve(space_file(GroupRule(match="head.*", max_ratio=0.5)), chain())
    with pytest.raises(ConfigError, match="nothing to prune"):
        resolve(space_file(GroupRule(match="*", frozen=True)), chain())


def test_the_last_match_counts_and_the_unmatched_stay_whole(chain, space_file) -> None:
    space = resolve(
        space_file(
            GroupRule(match="body.layer[012].*", max_ratio=0.75),
            GroupRule(match="body.layer1.*", frozen=True),
            GroupRule(match="body.layer2.*", max_ratio=0.5, min_width=100),
        ),
        chain(),
    )
    assert [variable.name for variable in space.variables] == ["body.layer0.conv", "body.layer2.conv"]
    assert space.lowest.tolist() == [16, 64, 104, 256]


def test_a_space_that_leaves_every_group_whole_is_refused(chain, space_file) -> None:
    with pytest.raises(ConfigError, match="nothing to prune, every group is as narrow as min_width"):
        resolve(space_file(min_width=1000), chain())


BLOCKS = {
    "names": (
        "backbone.body.conv1",
        "backbone.body.layer1.0.conv1",
        "backbone.body.layer1.0.conv2",
        "backbone.body.layer1.0.conv3",
        "backbone.body.layer1.1.conv1",
        "head.conv.0.0",
        "head.conv.1.0",
    ),
    "producers": (
        ["backbone.body.conv1"],
        ["backbone.body.layer1.0.conv1"],
        ["backbone.body.layer1.0.conv2"],
        [
            "backbone.body.layer1.0.conv3",
            "backbone.body.layer1.0.downsample.0",
            "backbone.body.layer1.1.conv3",
        ],
        ["backbone.body.layer1.1.conv1"],
        ["head.conv.0.0"],
        ["head.conv.1.0"],
    ),
    "dense": (64,) * 7,
}


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("layer", [{name} for name in BLOCKS["names"]]),
        (
            "block",
            [
                {"backbone.body.conv1"},
                {"backbone.body.layer1.0.conv1", "backbone.body.layer1.0.conv2"},
                {"backbone.body.layer1.0.conv3"},
                {"backbone.body.layer1.1.conv1"},
                {"head.conv.0.0"},
                {"head.conv.1.0"},
            ],
        ),
        (
            "stage",
            [
                {"backbone.body.conv1"},
                {f"backbone.body.layer1.{name}" for name in ("0.conv1", "0.conv2", "0.conv3", "1.conv1")},
                {"head.conv.0.0", "head.conv.1.0"},
            ],
        ),
    ],
)
def test_granularity_ties_groups_by_the_names_of_their_modules(
    chain, granularity, expected, space_file
) -> None:
    space = resolve(space_file(GroupRule(match="*", max_ratio=0.5), granularity=granularity), chain(**BLOCKS))
    assert [set(variable.groups) for variable in space.variables] == expected
    assert len({variable.name for variable in space.variables}) == len(expected)


def test_tied_groups_share_one_number_relative_to_their_largest_ratios(chain, space_file) -> None:
    space = resolve(
        space_file(
            GroupRule(match="body.layer[01].conv", max_ratio=0.5, tie="early"),
            GroupRule(match="body.layer3.conv", max_ratio=0.75, tie="early"),
        ),
        chain(),
    )
    assert [variable.groups for variable in space.variables] == [
        ("body.layer0.conv", "body.layer1.conv", "body.layer3.conv")
    ]
    assert space.widths(np.array([0.5])).tolist() == [48, 48, 128, 160]
