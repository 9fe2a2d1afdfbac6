"""Bounds follow the shape of the importance: a flat curve gives a wide range."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.config import ModelSpec
from autoprune.importance.reduce import removed_fraction
from autoprune.space.derive import derive_space, largest_ratio, with_multiples
from autoprune.space.render import render_space
from autoprune.space.resolve import resolve

SPEC = ModelSpec(name="retinanet_resnet18_fpn", num_classes=4)


@given(st.lists(st.floats(0.001, 1000), min_size=10, max_size=64), st.sampled_from([0.3, 0.6, 0.8]))
@settings(max_examples=50, deadline=None)
def test_the_largest_ratio_is_the_last_below_the_removable_fraction(
    scores: list[float], removable: float
) -> None:

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
    file = derive_space(graph, importance, SPEC, (64, 64), reach=1.0)
    ratios = {rule.match: rule.max_ratio for rule in file.groups}
    assert ratios == {
        "body.layer0.conv": 0.75,
        "body.layer1.conv": 0.75,
        "body.layer2.conv": 0.9,
        "body.layer3.conv": 0.75,
    }


def test_the_space_is_widened_until_it_reaches_far_enough(chain) -> None:
    graph = chain()
    importance = {name: np.ones(group.width) for name, group in graph.prunable.items()}
    space = resolve(derive_space(graph, importance, SPEC, (64, 64), reach=0.05), graph)
    assert graph.cost.flops(space.lowest) <= 0.05 * graph.cost.flops(graph.cost.dense)


def test_the_space_is_widened_for_parameters_as_well(chain) -> None:
    graph = chain()
    importance = {name: np.ones(group.width) for name, group in graph.prunable.items()}
    first = resolve(derive_space(graph, importance, SPEC, (64, 64)), graph)
    limit = 0.5 * float(first.cost("mparams", first.lowest))
    space = resolve(derive_space(graph, importance, SPEC, (64, 64), mparams=limit), graph)
    assert float(space.cost("mparams", space.lowest)) <= limit


def test_a_groups_own_multiple_counts_and_is_written(chain, importance_of) -> None:
    graph = chain()
    importance = importance_of(graph)
    file = derive_space(graph, importance, SPEC, (64, 64))
    name = "body.layer2.conv"
    changed = with_multiples(file, {name: 32, "body.layer3.conv": 8})
    assert [rule.match for rule in changed.groups if rule.round_to is not None] == [name]
    space = resolve(changed, graph)
    place = space.names.index(name)
    assert space.step[place] == 32
    assert space.lowest[place] % 32 == 0
    others = np.delete(np.arange(len(space.names)), place)
    assert (space.step[others] == resolve(file, graph).step[others]).all()
    assert f'match: "{name}", max_ratio: ' in render_space(changed, graph, importance)
    assert "round_to: 32}" in render_space(changed, graph, importance)
