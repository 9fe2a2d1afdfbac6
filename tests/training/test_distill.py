import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.config import ModelSpec
from autoprune.errors import ModelError
from autoprune.graph import analyze, prune
from autoprune.models import build, detector_inputs
from autoprune.training import Teacher, TrainSettings, train
from autoprune.training.distill import correlation_distance, feature_maps

CPU = torch.device("cpu")
WIDTH = 6


def graph_of(*outputs: tuple[str | None, list[int]]) -> Any:
    return SimpleNamespace(features={"backbone": [(group, np.array(index)) for group, index in outputs]})


def correlations(first: Tensor, second: Tensor) -> np.ndarray[Any, Any]:
    """Pearson's r of each channel, by numpy."""
    flat = [maps.detach().transpose(0, 1).flatten(1) for maps in (first, second)]
    return np.array([np.corrcoef(a.double(), b.double())[0, 1] for a, b in zip(*flat, strict=True)])


def test_the_distance_is_one_minus_the_correlation() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 3, 5, 4, 6)
    second = first + 0.5 * second
    r = correlations(first, second)
    assert correlation_distance(first, second).item() == pytest.approx(1 - r.mean(), abs=1e-5)
    weights = torch.tensor([0.5, 0.0, 2.0, 1.5, 1.0])
    weighted = correlation_distance(first, second, weights).item()
    assert weighted == pytest.approx(np.mean(weights.numpy() * (1 - r)), abs=1e-5)


def test_neither_scale_nor_offset_of_a_channel_matters() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 5, 4, 4)
    scale, offset = torch.rand(5, 1, 1) + 0.5, torch.randn(5, 1, 1)
    assert correlation_distance(features * scale + offset, features).item() == pytest.approx(0, abs=1e-5)
    assert correlation_distance(-features, features).item() == pytest.approx(2, abs=1e-5)


def test_a_constant_channel_has_a_finite_gradient() -> None:
    student = torch.zeros(2, 1, 3, 3, requires_grad=True)
    distance = correlation_distance(student, torch.randn(2, 1, 3, 3))
    distance.backward()
    assert distance.item() == pytest.approx(0.5, abs=1e-4)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_kept_channels_meet_their_own_in_the_teacher(toy: Any) -> None:
    """The second output is a permutation of the group with two channels that are not of it."""
    outputs = (("a", list(range(WIDTH))), ("a", [3, -1, 0, 5, -1, 2]))
    teacher = Teacher(toy, graph_of(*outputs), {"a": [0, 2, 3]})
    toy.eval()
    images = torch.rand(2, 3, 16, 16)
    fine, coarse = toy.backbone(images).values()
    student = [fine[:, [0, 2, 3]], coarse[:, [0, 1, 2, 4, 5]]]
    assert teacher.loss(student, images).item() == pytest.approx(0, abs=1e-5)
    wrong = [fine[:, [0, 2, 3]], coarse[:, [0, 1, 2, 4, 3]]]
    r = correlations(wrong[1], coarse[:, [0, 1, 2, 4, 5]])
    assert teacher.loss(wrong, images).item() == pytest.approx(1 - r.mean(), abs=1e-5)


def test_channels_count_by_their_importance(toy: Any) -> None:
    importance = {"a": np.array([1.0, 9.0, 3.0, 0.0, 2.0, 9.0])}
    graph = graph_of(("a", list(range(WIDTH))), (None, [-1] * WIDTH))
    teacher = Teacher(toy, graph, {"a": [0, 2, 4]}, importance)
    toy.eval()
    images = torch.rand(2, 3, 16, 16)
    fine, coarse = toy.backbone(images).values()
    student = torch.randn(2, 3, 16, 16)
    r = correlations(student, fine[:, [0, 2, 4]])
    expected = np.average(1 - r, weights=[1.0, 3.0, 2.0])
    assert teacher.loss([student, coarse], images).item() == pytest.approx(expected, abs=1e-5)


def test_the_dense_detector_is_left_alone(toy: Any) -> None:
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    teacher = Teacher(toy, graph_of((None, [-1] * WIDTH), (None, [-1] * WIDTH)), {})
    images = torch.rand(2, 3, 16, 16)
    student = [torch.rand(2, WIDTH, size, size, requires_grad=True) for size in (16, 8)]
    teacher.loss(student, images).backward()
    assert toy.training
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())
    assert all(p.grad is None for p in toy.parameters())


def test_student_and_teacher_see_the_same_images(toy: Any, split: Any) -> None:
    seen: list[Tensor] = []
    student = copy.deepcopy(toy)
    for model in (student, toy):
        model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    teacher = Teacher(toy, graph_of((None, [-1] * WIDTH), (None, [-1] * WIDTH)), {})  # its copy has the hook
    train(student, split, TrainSettings(3, batch_size=4, learning_rate=1e-9), CPU, teacher=teacher)
    assert len(seen) == 6
    assert all(ours is theirs for ours, theirs in zip(seen[::2], seen[1::2], strict=True))


def test_distillation_brings_the_features_nearer(toy: Any, split: Any) -> None:
    toy.eval()
    torch.manual_seed(1)
    student = type(toy)(width=3)
    keep = {"a": [1, 2, 4]}
    teacher = Teacher(toy, graph_of(("a", list(range(WIDTH))), ("a", list(range(WIDTH)))), keep)

    def distance(model: nn.Module) -> float:
        images, _ = toy.transform(list(split.images))
        return teacher.loss(feature_maps(model.backbone(images.tensors)), images.tensors).item()

    settings = TrainSettings(60, batch_size=5, learning_rate=0.01)
    alone = train(student, split, TrainSettings(**{**vars(settings), "distill": 0.0}), CPU, teacher=teacher)
    taught = train(student, split, settings, CPU, teacher=teacher)
    assert distance(taught.model) < 0.8 * distance(alone.model)
    assert taught.losses != alone.losses


def test_a_detector_without_a_backbone_is_refused(toy: Any) -> None:
    with pytest.raises(ModelError, match="set distill to 0"):
        Teacher(nn.Linear(2, 2), graph_of((None, [-1])), {})
    with pytest.raises(ModelError, match="set distill to 0"):
        Teacher(toy, SimpleNamespace(features={"backbone": []}), {})


def test_a_pruned_retinanet_meets_its_teacher_channel_by_channel() -> None:
    """With channels of the FPN outputs pruned alone, those that remain equal the dense ones: distance 0."""
    torch.manual_seed(0)
    arguments = {"min_size": 64, "max_size": 64, "fpn_channels": 16, "returned_layers": [2, 3]}
    dense = build(ModelSpec(name="retinanet_resnet18_fpn", arguments=arguments, num_classes=4)).eval()
    graph = analyze(dense, detector_inputs((64, 64)))
    groups = {group for group, _ in graph.features["backbone"]}
    assert len(groups) == 1  # the levels share their heads
    keep = {groups.pop(): [1, 2, 3, 5, 8, 13]}
    student = prune(dense, graph, keep)
    teacher = Teacher(dense, graph, keep)
    images = torch.randn(2, 3, 64, 64)
    features = feature_maps(student.backbone(images))
    assert [tuple(maps.shape[:2]) for maps in features] == [(2, 6)] * 4
    dense_features = [maps[:, [1, 2, 3, 5, 8, 13]] for maps in feature_maps(dense.backbone(images))]
    r = [correlations(ours, theirs) for ours, theirs in zip(features, dense_features, strict=True)]
    assert teacher.loss(features, images).item() == pytest.approx((1 - np.array(r)).mean(1).sum(), abs=1e-4)
    assert teacher.loss(features[:2] + dense_features[2:], images).item() == pytest.approx(0, abs=1e-4)
