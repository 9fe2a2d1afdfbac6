import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.errors import PolicyError
from autoprune.policy import Policy, hash_weights


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep: 0-2,5", "keep: 0-2,8", "channel 8 does not exist"),
        ("keep: 0-2,5", "keep: 5,0-2", "rising ranges"),
        ("format: 1", "format: 9", "update autoprune"),
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
