"""What a task says of a pruned detector is true of the pruned module itself."""

import io

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from autoprune import progress
from autoprune.config import make_config
from autoprune.detectors import detector_inputs
from autoprune.errors import ConfigError
from autoprune.graph import prune
from autoprune.policy import hash_weights
from autoprune.task import pruning_task
from autoprune.task.pruning_task import load_task


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**demo_settings))


@pytest.fixture(scope="module")
def keep(task):
    """The first half of every second group."""
    groups = list(task.graph.prunable.items())[::2]
    return {name: tuple(range(group.width // 2)) for name, group in groups}


def test_a_policy_of_the_task_prunes_as_its_keep_does(task, keep):
    policy = task.policy(keep, {"map": 0.5})
    applied, pruned = policy.apply(task.model).state_dict(), prune(task.model, task.graph, keep).state_dict()
    assert applied.keys() == pruned.keys()
    assert all(torch.equal(applied[name], pruned[name]) for name in pruned)
    assert policy.weights_sha256 == hash_weights(task.model.state_dict())
    assert (policy.input_size, policy.criterion, policy.metrics) == ((128, 128), "joint", {"map": 0.5})


@pytest.mark.parametrize("whole", [True, False])
def test_costs_are_those_of_the_pruned_module(task, keep, whole):
    keep = {} if whole else keep
    pruned = prune(task.model, task.graph, keep)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pruned(*detector_inputs(task.input_size))
    assert task.costs(keep) == {
        "gflops": pytest.approx(counter.get_total_flops() / 2e9, abs=1e-12),
        "mparams": sum(p.numel() for p in pruned.parameters()) / 1e6,
    }


def test_at_a_smaller_size_all_is_that_of_a_detector_built_for_it(demo_settings, keep):
    task = load_task(make_config(**demo_settings, input_sizes=(1.0, 0.75)))
    arguments = {**demo_settings["model_arguments"], "min_size": 96, "max_size": 96}
    built = load_task(make_config(**{**demo_settings, "model_arguments": arguments}))
    smaller = task.at(96)
    assert task.at(None) is task.at(128) is task
    with pytest.raises(ConfigError, match="a trial has 64 pixels, and the settings give 128, 96"):
        task.at(64)
    assert smaller.input_size == built.input_size == smaller.latency_setup.input_size == (96, 96)
    assert smaller.costs(keep) == built.costs(keep) != task.costs(keep)
    for split, expected in ((smaller.train, built.train), (smaller.val, built.val)):
        (images, targets), (others, boxes) = split.batch([0, 1]), expected.batch([0, 1])
        assert all(map(torch.equal, images, others))
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, boxes, strict=True))
    policy, images = smaller.policy(keep, {}), [torch.rand(3, 120, 128)]
    with torch.no_grad():
        pruned = prune(built.model, built.graph, keep)
        assert torch.equal(policy.apply(task.model)(images)[0]["boxes"], pruned(images)[0]["boxes"])
        assert torch.equal(smaller.model(images)[0]["boxes"], built.model(images)[0]["boxes"])
    assert task.policy(keep, {}).resize is None


def test_classes_and_input_size_come_from_the_data_where_they_are_not_given(task, demo_settings):
    assert not task.model.training
    assert task.spec.num_classes == task.train.num_classes
    assert task.input_size == (128, 128)  # what all images are resized to
    given = load_task(make_config(**demo_settings, input_size=(64, 96)))
    assert given.input_size == given.latency_setup.input_size == (64, 96)
    assert given.graph.gflops() < task.graph.gflops()


@pytest.mark.parametrize(
    ("settings", "threads"), [({}, 3), ({"cpus_per_trial": 0.5}, 1), ({"threads": 2}, 2)]
)
def test_on_ray_latency_has_the_threads_of_a_worker(demo_settings, settings, threads):
    given = {**demo_settings, "threads": None, "engine": "ray", "cpus_per_trial": 3.5, **settings}
    task = load_task(make_config(**{name: value for name, value in given.items() if value is not None}))
    assert task.latency_setup.threads == threads


def test_what_is_loaded_is_said_and_a_setting_without_effect(demo_settings, monkeypatch, task):
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=300)):
        load_task(make_config(**demo_settings, distill_logits=1.0))
        said = (
            f"{task.spec.name} at 128x128 (height x width): {task.graph.gflops():.2f} GFLOPs; 8 training and"
        )
        assert lines.getvalue() == f"{said} 6 validation images\n"
        monkeypatch.setattr(pruning_task, "find_parts", lambda model, graph: None)
        load_task(make_config(**demo_settings, distill_logits=1.0))
    assert (
        lines.getvalue()
        .splitlines()[1]
        .startswith("distill_logits does nothing: of retinanet_resnet18_fpn no class logits")
    )
