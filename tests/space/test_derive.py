import itertools
import time
from math import lcm
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoprune.config import ModelSpec
from autoprune.cost.budget import Budget
from autoprune.errors import BudgetError, ConfigError
from autoprune.space import file as module
from autoprune.space.derive import (
    GroupRule,
    SpaceFile,
    derive_space,
    ready_space,
    removed_importance,
    render_space,
    resolve,
    save_space,
)
from autoprune.space.space import Space

SPEC = ModelSpec(name="retinanet_resnet18_fpn", arguments={"min_size": 192, "rate": 1e-5}, num_classes=4)


def space_file(*rules: GroupRule, **changes) -> SpaceFile:
    return SpaceFile(
        **{
            "model": "m",
            "input_size": (64, 64),
            "groups": rules or (GroupRule(match="body.*", max_ratio=0.75),),
            **changes,
        }
    )


# the file


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("model: m\ninput_size: [8, 8]\nround: 8\ngroups:\n  - {match: '*', max_ratio: 0.5}\n")
    with pytest.raises(ConfigError, match=r"unknown key `round` in .*space\.yaml; valid keys: round_to"):
        SpaceFile.load(path)
    path.write_text("model: m\ninput_size: [8, 8]\ngroups:\n  - {match: '*', max_rato: 0.5}\n")
    with pytest.raises(ConfigError, match=r"unknown key `groups\.0\.max_rato`.*groups\.0\.max_ratio"):
        SpaceFile.load(path)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("max_ratio: 1.0", "less than 1"),
        ("max_ratio: 0", "greater than 0"),
        ("max_ratio: much", "valid number"),
        ("tie: a", "either max_ratio"),
        ("frozen: true, max_ratio: 0.5", "either max_ratio"),
        ("frozen: true, tie: a", "frozen: leave out"),
        ("max_ratio: 0.5, min_width: 0", "greater than or equal to 1"),
    ],
)
def test_a_bad_entry_is_refused_in_one_line(tmp_path: Path, rule: str, problem: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"model: m\ninput_size: [8, 8]\ngroups:\n  - {{match: 'body.*', {rule}}}\n")
    with pytest.raises(ConfigError, match=problem) as error:
        SpaceFile.load(path)
    assert "\n" not in str(error.value)
    assert "groups.0" in str(error.value)


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="not a search space"):
        SpaceFile.load(path)


def test_a_glob_without_a_group_names_the_nearest(chain) -> None:
    with pytest.raises(
        ConfigError, match=r"`body\.layr1\.conv` matches no channel group; nearest: body\.layer1\.conv"
    ):
        resolve(space_file(GroupRule(match="body.layr1.conv", max_ratio=0.5)), chain())


def test_a_ratio_for_what_can_not_be_pruned_says_why(chain) -> None:
    with pytest.raises(ConfigError, match=r"`head\.out` has no consumer"):
        resolve(space_file(GroupRule(match="head.*", max_ratio=0.5)), chain())
    with pytest.raises(ConfigError, match="nothing to prune"):
        resolve(space_file(GroupRule(match="*", frozen=True)), chain())


def test_the_last_match_counts_and_the_unmatched_stay_whole(chain) -> None:
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


def test_derived_files_read_back_equal_and_carry_their_comments(tmp_path: Path, chain, importance_of) -> None:
    graph = chain(units=(1, 4, 1, 1))
    importance = importance_of(graph)
    file = derive_space(graph, importance, SPEC, (96, 128), "fisher", "block", 16, 24)
    path = tmp_path / "space.yaml"
    save_space(path, file, graph, importance)
    assert SpaceFile.load(path) == file
    lines = {
        line.split('"')[1]: line
        for line in path.read_text().splitlines()
        if "match: " in line and '"' in line
    }
    for name, group in graph.prunable.items():
        space = resolve(file, graph)
        left = int(space.lowest[space.names.index(name)])
        # by hand: channels sorted unit by unit, the least important go
        units = np.sort(importance[name].reshape(-1, group.unit).sum(1))
        gone = units[: (group.width - left) // group.unit].sum() / units.sum()
        assert f"{group.width} channels" in lines[name]
        assert f"keeps at least {left}, without {100 * gone:.0f}% of the importance" in lines[name]
    assert "in units of 4" in lines["body.layer1.conv"]
    first = 1e5 * 3 * 64 + 2e5 * 64 * 64  # what writes and what reads the first group
    assert f"{100 * first / graph.cost.flops(graph.cost.dense):.1f}% of GFLOPs" in lines["body.layer0.conv"]
    assert "#   head.out has no consumer" in path.read_text()


def test_a_file_with_every_field_reads_back_equal(tmp_path: Path, chain, importance_of) -> None:
    graph = chain()
    file = space_file(
        GroupRule(match="body.*", max_ratio=0.123456789, tie="all of: them", min_width=3),
        GroupRule(match="head.*", frozen=True),
        model="package.module:make",
        model_arguments={"threshold": 1e-05, "layers": [1, 2], "name": "a: b", "on": True},
        granularity="stage",
    )
    path = tmp_path / "space.yaml"
    path.write_text(render_space(file, graph, importance_of(graph)))
    assert SpaceFile.load(path) == file


# bounds from importance


@given(st.lists(st.floats(0.001, 1000), min_size=10, max_size=64), st.sampled_from([0.3, 0.6, 0.8]))
@settings(max_examples=50, deadline=None)
def test_the_largest_ratio_is_the_last_below_the_removable_share(
    scores: list[float], removable: float
) -> None:
    from autoprune.importance.reduce import removed_fraction
    from autoprune.space.derive import largest_ratio

    ratio = largest_ratio(removed_fraction(np.array(scores)), removable)
    ordered, n = sorted(scores), len(scores)

    def lost(r: float) -> float:  # least important r of the channels, the last one in part
        whole = int(r * n + 1e-9)
        part = (r * n - whole) * ordered[whole] if whole < n else 0
        return (sum(ordered[:whole]) + part) / sum(ordered)

    assert lost(ratio) <= removable + 1e-6
    assert ratio == 0.9 or lost(ratio + 0.011) > removable


def test_a_flat_curve_gives_a_wide_range(chain) -> None:
    graph = chain()
    importance = {name: np.ones(group.width) for name, group in graph.prunable.items()}
    importance["body.layer2.conv"] = np.where(np.arange(128) < 6, 1.0, 1e-6)  # six channels carry the group
    file = derive_space(graph, importance, SPEC, (64, 64), removable=0.6, reach=1.0)
    ratios = {rule.match: rule.max_ratio for rule in file.groups}
    assert ratios == {
        "body.layer0.conv": 0.6,
        "body.layer1.conv": 0.6,
        "body.layer2.conv": 0.9,
        "body.layer3.conv": 0.6,
    }


def test_the_space_is_widened_until_it_reaches_far_enough(chain) -> None:
    graph = chain()
    importance = {name: np.ones(group.width) for name, group in graph.prunable.items()}
    space = resolve(derive_space(graph, importance, SPEC, (64, 64), reach=0.05), graph)
    assert graph.cost.flops(space.lowest) <= 0.05 * graph.cost.flops(graph.cost.dense)


# granularity

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
def test_granularity_ties_groups_by_the_names_of_their_modules(chain, granularity, expected) -> None:
    space = resolve(space_file(GroupRule(match="*", max_ratio=0.5), granularity=granularity), chain(**BLOCKS))
    assert [set(variable.groups) for variable in space.variables] == expected
    assert len({variable.name for variable in space.variables}) == len(expected)


def test_tied_groups_share_one_number_relative_to_their_largest_ratios(chain) -> None:
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


# widths


@given(
    dense=st.lists(st.sampled_from([16, 20, 24, 36, 64, 96, 256]), min_size=1, max_size=5),
    unit=st.sampled_from([1, 2, 4]),
    round_to=st.sampled_from([1, 8, 16]),
    min_width=st.integers(1, 40),
    max_ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_widths_respect_every_rule(chain, dense, unit, round_to, min_width, max_ratio, seed) -> None:
    graph = chain(dense=dense, units=[unit] * len(dense))
    file = space_file(GroupRule(match="body.*", max_ratio=max_ratio), round_to=round_to, min_width=min_width)
    steps = [lcm(unit, round_to) if lcm(unit, round_to) <= whole else unit for whole in dense]
    if not any(
        width >= max(min_width, whole * (1 - max_ratio))
        for whole, step in zip(dense, steps, strict=True)
        for width in range(step, whole, step)
    ):
        with pytest.raises(ConfigError, match="nothing to prune"):
            resolve(file, graph)
        return
    space = resolve(file, graph)
    fractions = np.random.default_rng(seed).random((4, len(space.variables)))
    fractions[0], fractions[1] = 0, 1
    for row, fraction in zip(space.widths(fractions), fractions, strict=True):
        assert row.tolist() == space.widths(fraction).tolist()
        for width, whole, step in zip(row.tolist(), dense, steps, strict=True):
            assert width == whole or width % step == 0
            assert width % unit == 0
            assert whole >= width >= min(min_width, whole)
            assert width >= whole * (1 - max_ratio) - 1e-6
    assert space.widths(fractions[0]).tolist() == dense


def test_a_share_goes_to_the_nearest_step(chain) -> None:
    space = resolve(space_file(), chain())
    # dense * (1 - 0.3 * 0.75) = 49.6, 49.6, 99.2, 198.4
    assert space.widths(np.full(4, 0.3)).tolist() == [48, 48, 96, 200]


def test_shares_of_widths_give_the_widths_back(chain) -> None:
    space = resolve(space_file(), chain())
    for widths in itertools.product((16, 40, 64), (24, 64), (32, 128), (64, 72, 248, 256)):
        assert space.widths(space.fractions(np.array(widths))).tolist() == list(widths)


# on budget


def brute_force_room(space: Space, widths: np.ndarray, budgets: list[Budget]) -> list[int]:
    """Groups that could take one more step."""
    found = []
    for place in range(len(widths)):
        more = widths.copy()
        more[place] = min(more[place] + space.step[place], space.dense[place])
        if more[place] > widths[place] and all(space.cost(b.metric, more) <= b.limit for b in budgets):
            found.append(place)
    return found


@given(
    fractions=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    gflops=st.floats(0.15, 0.95),
    mparams=st.floats(0.15, 0.95) | st.none(),
)
@settings(max_examples=100, deadline=None)
def test_every_suggestion_is_put_on_budget(chain, fractions, gflops, mparams) -> None:
    graph = chain()
    space = resolve(space_file(), graph)
    budgets = [Budget("gflops", gflops * float(space.cost("gflops", space.dense)))]
    if mparams is not None:
        budgets.append(Budget("mparams", mparams * float(space.cost("mparams", space.dense))))
    widths = space.project_to_budget(np.array(fractions), budgets)
    assert all(space.cost(budget.metric, widths) <= budget.limit for budget in budgets)
    assert (widths >= space.lowest).all()
    assert (widths <= space.dense).all()
    assert (widths % 8 == 0).all()
    assert brute_force_room(space, widths, budgets) == []
    assert space.project_to_budget(space.fractions(widths), budgets).tolist() == widths.tolist()


def test_the_fitted_ratios_keep_the_order_of_the_shares(chain) -> None:
    graph = chain(dense=(256,) * 4)
    space = resolve(space_file(), graph)
    budget = Budget("gflops", 0.4 * float(space.cost("gflops", space.dense)))
    for fractions in itertools.permutations((0.2, 0.4, 0.7, 0.95)):
        widths = space.project_to_budget(np.array(fractions), [budget])
        assert np.argsort(widths).tolist() == np.argsort(-np.array(fractions)).tolist()


def test_a_budget_out_of_reach_says_what_is_reachable(chain) -> None:
    space = resolve(space_file(), chain())
    least = float(space.cost("gflops", np.array([16, 16, 32, 64])))
    with pytest.raises(
        BudgetError, match=rf"budget_gflops: 0.1 GFLOPs can't be reached.* is {least:.4g} GFLOPs"
    ):
        space.project_to_budget(np.zeros(4), [Budget("gflops", 0.1)])
    with pytest.raises(BudgetError, match="above the dense detector"):
        space.project_to_budget(np.zeros(4), [Budget("mparams", 1000.0)])


def test_latency_is_not_fitted(chain) -> None:
    space = resolve(space_file(), chain())
    assert space.project_to_budget(np.zeros(4), [Budget("latency_ms", 1e-3)]).tolist() == space.dense.tolist()


# kept channels


def test_the_most_important_units_stay(chain) -> None:
    graph = chain(dense=(16, 8, 16), units=(1, 4, 2))
    scores = np.array([9.0, 1, 1, 1, 4, 4, 3, 3])  # units: 12 and 14
    importance = {
        "body.layer0.conv": np.arange(16.0)[::-1],
        "body.layer1.conv": scores,
        "body.layer2.conv": np.ones(16),
    }
    space = resolve(space_file(round_to=1, min_width=1), graph, importance)
    assert space.keep(np.array([5, 4, 16])) == {
        "body.layer0.conv": (0, 1, 2, 3, 4),
        "body.layer1.conv": (4, 5, 6, 7),
    }
    assert space.keep(np.array([16, 8, 6])) == {"body.layer2.conv": (0, 1, 2, 3, 4, 5)}
    assert removed_importance(graph.groups["body.layer1.conv"], 4, scores) == pytest.approx(12 / 26)


def test_kept_channels_nest_as_the_width_falls(chain, importance_of) -> None:
    graph = chain()
    space = resolve(space_file(), graph, importance_of(graph))
    wide, narrow = space.keep(np.array([32, 32, 64, 128])), space.keep(np.array([24, 16, 40, 64]))
    assert all(set(narrow[name]) < set(wide[name]) for name in wide)


def test_keeping_needs_importance(chain) -> None:
    with pytest.raises(ValueError, match="importance"):
        resolve(space_file(), chain()).keep(np.array([16, 16, 32, 64]))


def test_fitting_is_fast(chain) -> None:
    graph = chain(dense=(256,) * 80)
    space = resolve(space_file(), graph)
    budget = Budget("gflops", 0.4 * float(space.cost("gflops", space.dense)))
    random = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(20):
        widths = space.project_to_budget(random.random(80), [budget])
        assert space.cost("gflops", widths) > 0.99 * budget.limit
    assert (time.perf_counter() - start) / 20 < 0.1  # 5 ms on an idle core; room for a busy one


def test_a_space_that_leaves_every_group_whole_is_refused(chain) -> None:
    with pytest.raises(ConfigError, match="nothing to prune, every group is as narrow as min_width"):
        resolve(space_file(min_width=1000), chain())


def test_there_is_no_ready_space_for_an_unknown_model() -> None:
    assert ready_space("no_such_detector") is None


def test_ready_spaces_are_found_beside_the_installed_modules(tmp_path: Path, monkeypatch) -> None:
    """pyproject.toml puts search_spaces/ into the wheel as autoprune/search_spaces/."""
    (tmp_path / "autoprune" / "search_spaces").mkdir(parents=True)
    expected = tmp_path / "autoprune" / "search_spaces" / "retinanet_resnet50_fpn_coco.yaml"
    expected.write_text("")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "autoprune" / "search" / "space_file.py"))
    assert ready_space("retinanet_resnet50_fpn") == expected


NETWORK = [f"body.layer{i // 3}.{i % 3}.conv{j}" for i in range(6) for j in (1, 2)]


@given(
    fractions=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    gflops=st.floats(0.2, 0.99),
    mparams=st.none() | st.floats(0.2, 0.99),
    granularity=st.sampled_from(["layer", "block", "stage"]),
    tied=st.booleans(),
    unit=st.sampled_from([1, 4]),
)
@settings(max_examples=150, deadline=None)
def test_every_suggestion_ends_within_two_per_cent_below_its_budget(
    chain, fractions, gflops, mparams, granularity, tied, unit
) -> None:
    dense = (64, 96, 128, 100, 256, 36, 64, 64, 72, 128, 256, 256)
    graph = chain(dense=dense, names=NETWORK, units=[unit] * 12)
    rules = [GroupRule(match="body.*", max_ratio=0.9)]
    if tied:
        rules.append(GroupRule(match="body.layer1.*.conv1", max_ratio=0.5, tie="narrow"))
    space = resolve(space_file(*rules, granularity=granularity, round_to=4), graph)
    budgets = [Budget("gflops", gflops * float(graph.cost.flops(space.dense)) / 1e9)]
    if mparams is not None:
        budgets.append(Budget("mparams", mparams * float(graph.cost.params(space.dense)) / 1e6))
    assume(space.budget_usage(space.lowest, budgets) <= 1)
    widths = space.project_to_budget(np.array(fractions[: len(space.variables)]), budgets)
    used = [float(graph.cost.flops(widths)) / 1e9 / budgets[0].limit]
    if mparams is not None:
        used.append(float(graph.cost.params(widths)) / 1e6 / budgets[1].limit)
    assert 0.98 <= max(used) <= 1
    assert all(width == whole or width % 4 == 0 for width, whole in zip(widths, dense, strict=True))
    assert (widths >= space.lowest).all()
