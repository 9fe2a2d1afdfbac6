import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ModelError, PolicyError
from autoprune.graph import analyze, prune
from autoprune.policy import Policy, hash_weights
from autoprune.resize import Resize, resize_rule


def make_policy(**changes):
    values = {
        "model": ModelSpec(name="retinanet_resnet18_fpn", arguments={"min_size": 64}, num_classes=4),
        "weights_sha256": "0" * 64,
        "criterion": "taylor",
        "input_size": (64, 96),
        "widths": {"a.conv": 8, "b.conv": 4},
        "keep": {"a.conv": (0, 1, 2, 5), "b.conv": (3,)},
        "metrics": {"map": 0.4375, "gflops": 1.25},
    }
    return Policy(**{**values, **changes})


def test_policy_reads_back_equal(tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "policy.yaml")
    assert Policy.load(tmp_path / "policy.yaml") == policy
    assert policy.kept_widths == {"a.conv": 4, "b.conv": 1}


@pytest.mark.parametrize("rule", [Resize(64, 107), Resize(fixed=(224, 320))])
def test_an_input_size_reads_back_and_one_of_the_detector_itself_is_not_written(tmp_path, rule):
    file = tmp_path / "policy.yaml"
    make_policy().save(file)
    assert "resize" not in file.read_text()
    policy = make_policy(resize=rule, widths={}, keep={})  # the dense detector at a lower size
    policy.save(file)
    assert Policy.load(file) == policy
    assert f"at {rule.pixels} pixels: 0 of 0" in repr(policy)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{min_size: 64}", "must hold min_size and max_size, or fixed alone"),
        ("{min_size: 64, max_size: 64, fixed: [64, 64]}", "or fixed alone"),
        ("{fixed: [0, 64]}", "sizes of 1 to 65536 pixels"),
        ("{min_size: x, max_size: 64}", "`resize.min_size`"),
        ("{side: 64}", "`resize.side`"),
    ],
)
def test_a_broken_input_size_is_one_line(tmp_path, line, message):
    file = tmp_path / "policy.yaml"
    make_policy().save(file)
    file.write_text(file.read_text() + f"resize: {line}\n")
    with pytest.raises(PolicyError) as caught:
        Policy.load(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [-1, 4, 90])
def test_labels_that_the_detector_lacks_are_refused_by_name(tmp_path, label):
    """As of a policy into which the labels of another detector were copied."""
    file = tmp_path / "policy.yaml"
    make_policy(labels={0: "all", 3: "cat"}).save(file)
    assert Policy.load(file).labels == {0: "all", 3: "cat"}
    file.write_text(file.read_text().replace("3: cat", f"{label}: cat"))
    with pytest.raises(PolicyError) as refused:
        Policy.load(file)
    said = f"{file}: `labels` names {label} 'cat', and retinanet_resnet18_fpn has labels up to 3; restore"
    assert str(refused.value).startswith(said)


def test_an_emptied_group_is_written_as_none(tmp_path):
    policy = make_policy(keep={"a.conv": (), "b.conv": (3,)})
    policy.save(tmp_path / "policy.yaml")
    assert "keep: none" in (tmp_path / "policy.yaml").read_text()
    assert Policy.load(tmp_path / "policy.yaml") == policy
    assert policy.kept_widths == {"a.conv": 0, "b.conv": 1}


def test_a_policy_that_empties_what_it_must_not_is_refused_by_name(chain):
    graph = analyze(chain, ([torch.rand(3, 16, 16)],))
    name = next(iter(graph.prunable))
    policy = policy_of(chain, widths={name: graph.groups[name].width}, keep={name: ()})
    for refused in (lambda: policy.apply(chain, graph), lambda: policy.with_costs(graph)):
        with pytest.raises(PolicyError, match=f"^group `{name}` can't be emptied: it carries all that "):
            refused()


def test_a_policy_is_printed_in_a_line_without_its_channels():
    name = "retinanet_resnet18_fpn"
    assert repr(make_policy()) == f"<Policy of {name}: 5 of 12 channels in 2 groups; map 0.4375, gflops 1.25>"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep: 0-2,5", "keep: 0-2,8", "channel 8 does not exist"),
        ("keep: 0-2,5", "keep: 5,0-2", "rising ranges"),
        ("format: 1", "format: 9", "update autoprune"),
        ("format: 1", "format: '1'", "`format` must be the number 1, not '1'"),
        ("format: 1", "format: true", "`format` must be the number 1, not True"),
        ("format: 1\n", "", "`format` is missing"),
        ("map: 0.4375", "map: many", "`metrics.map`"),
        ("map: 0.4375", "map: true", "`metrics"),
        ("map: 0.4375", "map: null", "`metrics.map`"),
        ("map: 0.4375", "map: [1]", "`metrics.map`"),
        ("map: 0.4375", "map: .nan", "`metrics.map`"),
        ("groups:", "layers:", "not a policy file"),
        ("criterion:", "criterium:", "unknown key `criterium`"),
        ("width: 8", "width: many", "width"),
    ],
)
def test_broken_files_are_one_line(tmp_path, old, new, message):
    path = tmp_path / "policy.yaml"
    make_policy().save(path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(PolicyError) as caught:
        Policy.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hash_depends_on_names_shapes_and_values_only():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1.0), "a": torch.arange(6.0).reshape(3, 2).T.reshape(2, 3).clone()}
    same["a"].copy_(state["a"])
    assert hash_weights(state) == hash_weights(same)
    renamed = {"c": state["a"], "b": state["b"]}
    reshaped = {"a": state["a"].reshape(3, 2), "b": state["b"]}
    changed = {"a": state["a"] + 1e-6, "b": state["b"]}
    assert len({hash_weights(other) for other in (state, renamed, reshaped, changed)}) == 4


class Chain(nn.Module):
    """Two convolutions and a prediction layer, called as detectors are."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.last(self.second(self.first(torch.stack(images)).relu()).relu())


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain().eval()


def policy_of(model, **changes):
    fitting = {
        "weights_sha256": hash_weights(model.state_dict()),
        "widths": {"first": 8, "second": 4},
        "keep": {"first": (0, 3, 7), "second": (1, 2)},
        "input_size": (16, 16),
    }
    return make_policy(**{**fitting, **changes})


def test_an_applied_policy_is_the_masked_model(chain):
    policy, images = policy_of(chain), [torch.rand(3, 16, 16)]
    masked = copy.deepcopy(chain)
    with torch.no_grad():
        for name, kept in policy.keep.items():
            removed = [index for index in range(policy.widths[name]) if index not in kept]
            layer = masked.get_submodule(name)
            layer.weight[removed], layer.bias[removed] = 0, 0
        before = chain(images)
        pruned = policy.apply(chain)
        torch.testing.assert_close(pruned(images), masked(images))
        assert torch.equal(chain(images), before), "the dense model is unchanged"
    assert (pruned.first.out_channels, pruned.second.out_channels) == (3, 2)


def test_other_weights_of_the_architecture_are_taken_with_a_warning(chain):
    policy = policy_of(chain)
    torch.nn.init.ones_(chain.last.bias)
    with pytest.warns(UserWarning, match="made for other dense weights"):
        pruned = policy.apply(chain)
    assert torch.equal(pruned.last.bias, chain.last.bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": {"third": 8}, "keep": {"third": (0,)}}, "no group `third` here"),
        ({"widths": {"first": 16}, "keep": {"first": (0,)}}, "group `first` has 8 channels, not 16"),
        ({"widths": {"second": 4}, "keep": {"second": (0, 1, 2, 3)}}, "prunes nothing"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(chain, changes, message):
    with pytest.raises(PolicyError, match=message) as caught:
        policy_of(chain, **changes).apply(chain)
    assert "\n" not in str(caught.value)


def test_a_policy_of_another_input_size_is_refused_where_the_detector_has_one_only(chain):
    with pytest.raises(ModelError, match="Chain can't run at another input size: it needs a `transform`"):
        policy_of(chain, resize=Resize(8, 8)).apply(chain)


@pytest.mark.parametrize("pruned", [True, False])
def test_applied_at_a_smaller_size_it_is_the_detector_built_for_that_size(pruned):
    sizes = {"min_size": 96, "max_size": 96}, {"min_size": 64, "max_size": 80}
    small = {"fpn_channels": 32, "returned_layers": [2, 3], "score_thresh": 0.001}
    spec, other = (
        ModelSpec(name="retinanet_resnet18_fpn", arguments={**small, **size}, num_classes=4) for size in sizes
    )
    dense, built = build(spec).eval(), build(other).eval()
    built.load_state_dict(dense.state_dict())
    name = "backbone.body.layer1.0.conv1"
    keep = {name: tuple(range(0, 64, 2))} if pruned else {}
    policy = Policy(
        spec,
        hash_weights(dense.state_dict()),
        "l2",
        (64, 72),
        {n: 64 for n in keep},
        keep,
        {},
        Resize(64, 80),
    )
    applied, images = policy.apply(dense), [torch.rand(3, 100, 112)]
    expected = prune(built, analyze(built, (images,)), keep)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = applied(images)[0]
    with torch.no_grad():
        detections = expected(images)[0]
    assert len(detections["boxes"])
    assert all(torch.equal(outputs[key], tensor) for key, tensor in detections.items())
    graph = analyze(policy.resized(dense), (images,))
    assert policy.with_costs(graph).metrics["gflops"] == counter.get_total_flops() / 2e9
    assert resize_rule(dense) == Resize(96, 96)


def test_costs_that_belong_to_other_channels_are_replaced_with_a_warning(chain, recwarn):
    graph = analyze(chain, ([torch.rand(3, 16, 16)],))
    policy = policy_of(chain, metrics={"map": 0.5}).with_costs(graph)
    expected = {"gflops": graph.gflops(policy.kept_widths), "mparams": graph.mparams(policy.kept_widths)}
    assert policy.metrics == {"map": 0.5, **expected}
    assert policy.with_costs(graph) == policy
    assert not recwarn.list
    edited = replace(policy, keep={**policy.keep, "first": tuple(range(8))})
    with pytest.warns(UserWarning, match=f"p.yaml says gflops {expected['gflops']:g}, and its") as caught:
        costs = edited.with_costs(graph, "p.yaml").metrics
    assert f"{costs['gflops']:g}" in str(caught[0].message)
    assert costs["gflops"] > expected["gflops"]
    assert "map" not in costs  # measured with other channels


def test_numbers_of_numpy_and_torch_are_written_as_plain_ones(tmp_path):
    policy = make_policy(
        input_size=(np.int64(64), np.int32(96)),
        widths={"a.conv": np.int64(8), "b.conv": torch.tensor(4)},
        keep={"a.conv": np.array([0, 1, 2, 5]), "b.conv": torch.tensor([3])},
        metrics={"map": np.float32(0.4375), "gflops": torch.tensor(1.25)},
    )
    policy.save(tmp_path / "policy.yaml")
    assert Policy.load(tmp_path / "policy.yaml") == make_policy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": {"a.conv": (3, 1)}}, "group `a.conv`: keep must be rising"),
        ({"keep": {"a.conv": (8,)}}, "group `a.conv`: channel 8 does not exist"),
        ({"keep": {"c.conv": (0,)}}, "`groups.c.conv.width`"),
        ({"metrics": {"a": None}}, "`metrics.a`"),
        ({"metrics": {"a": float("nan")}}, "`metrics.a`"),
        ({"input_size": (64,)}, "`input_size"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, changes, message):
    with pytest.raises(PolicyError) as caught:
        make_policy(**changes).save(tmp_path / "policy.yaml")
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_cost_that_is_no_number_is_refused(chain):
    graph = analyze(chain, ([torch.rand(3, 16, 16)],))
    with pytest.raises(PolicyError, match=r"metrics\.gflops of p\.yaml is a str; give a number"):
        policy_of(chain, metrics={"gflops": "x"}).with_costs(graph, "p.yaml")
