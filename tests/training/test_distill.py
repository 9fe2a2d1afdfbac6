import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import entropy
from torch import Tensor, nn

from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs
from autoprune.errors import ModelError
from autoprune.graph import analyze, prune
from autoprune.modules.tensor_tree import feature_maps
from autoprune.training import Teacher, TrainSettings, train
from autoprune.training.batches import draw_batch
from autoprune.training.capture import Captured
from autoprune.training.distill import correlation_distance, logit_distance

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
    assert teacher.loss(Captured(images, student))["features"].item() == pytest.approx(0, abs=1e-5)
    wrong = [fine[:, [0, 2, 3]], coarse[:, [0, 1, 2, 4, 3]]]
    r = correlations(wrong[1], coarse[:, [0, 1, 2, 4, 5]])
    assert teacher.loss(Captured(images, wrong))["features"].item() == pytest.approx(1 - r.mean(), abs=1e-5)


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
    assert teacher.loss(Captured(images, [student, coarse]))["features"].item() == pytest.approx(
        expected, abs=1e-5
    )


def test_the_dense_detector_is_left_alone(toy: Any) -> None:
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    teacher = Teacher(toy, graph_of((None, [-1] * WIDTH), (None, [-1] * WIDTH)), {})
    images = torch.rand(2, 3, 16, 16)
    student = [torch.rand(2, WIDTH, size, size, requires_grad=True) for size in (16, 8)]
    teacher.loss(Captured(images, student))["features"].backward()
    assert toy.training
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())
    assert all(p.grad is None for p in toy.parameters())


def test_student_and_teacher_see_the_same_images(toy: Any, split: Any) -> None:
    inputs: list[Tensor] = []
    student = copy.deepcopy(toy)
    for model in (student, toy):
        model.backbone.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    teacher = Teacher(toy, graph_of((None, [-1] * WIDTH), (None, [-1] * WIDTH)), {})  # its copy has the hook
    train(student, split, TrainSettings(3, batch_size=4, learning_rate=1e-9), CPU, teacher=teacher)
    assert len(inputs) == 6
    assert all(ours is theirs for ours, theirs in zip(inputs[::2], inputs[1::2], strict=True))


def test_distillation_brings_the_features_nearer(toy: Any, split: Any) -> None:
    toy.eval()
    torch.manual_seed(1)
    student = type(toy)(width=3)
    keep = {"a": [1, 2, 4]}
    teacher = Teacher(toy, graph_of(("a", list(range(WIDTH))), ("a", list(range(WIDTH)))), keep)

    def distance(model: nn.Module) -> float:
        images, _ = toy.transform(list(split.images))
        return teacher.loss(Captured(images.tensors, feature_maps(model.backbone(images.tensors))))[
            "features"
        ].item()

    settings = TrainSettings(60, batch_size=5, learning_rate=0.01)
    alone = train(student, split, TrainSettings(**{**vars(settings), "distill": 0.0}), CPU, teacher=teacher)
    taught = train(student, split, settings, CPU, teacher=teacher)
    assert distance(taught.model) < 0.8 * distance(alone.model)
    assert taught.losses != alone.losses


def test_the_distance_of_logits_is_the_sum_of_bernoulli_divergences() -> None:
    """Against scipy's entropy of each pair of two-point distributions."""
    random = np.random.default_rng(0)
    ours, theirs = random.normal(-1, 2, (2, 2, 5, 3))
    p, q = expit(theirs), expit(ours)
    divergence = entropy(np.stack([p, 1 - p]), np.stack([q, 1 - q]), axis=0)
    distance = logit_distance(torch.tensor(ours), torch.tensor(theirs))
    assert distance.item() == pytest.approx(divergence.sum() / p.sum(), rel=1e-5)
    assert logit_distance(torch.tensor(theirs), torch.tensor(theirs)).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_a_logit_is_the_difference_of_probabilities() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(1, 7, 2, requires_grad=True), torch.randn(1, 7, 2)
    logit_distance(ours, theirs).backward()
    expected = (ours.sigmoid() - theirs.sigmoid()) / theirs.sigmoid().sum()
    torch.testing.assert_close(ours.grad, expected.detach())


def retinanet() -> nn.Module:
    torch.manual_seed(0)
    arguments = {"min_size": 64, "max_size": 64, "fpn_channels": 16, "returned_layers": [2, 3]}
    return build(ModelSpec(name="retinanet_resnet18_fpn", arguments=arguments, num_classes=4)).eval()


def test_class_logits_are_taught(image_split: Any) -> None:
    """The loss of a step is the detector's own, and the divergence of the dense detector's logits."""
    dense = retinanet()
    graph = analyze(dense, detector_inputs((64, 64)))
    for module in dense.head.classification_head.modules():  # fresh ones give a constant
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    keep = {name: range(0, group.width, 2) for name, group in graph.prunable.items()}
    student = prune(dense, graph, keep)
    steps = {}
    for distill, logits in [(0.0, 0.0), (0.0, 3.0), (2.0, 3.0)]:
        settings = TrainSettings(1, batch_size=2, distill=distill, distill_logits=logits)
        teacher = Teacher(dense, graph, keep, logits=bool(logits))
        (steps[distill, logits],) = train(student, image_split, settings, CPU, teacher).losses
    indices, flips = draw_batch(len(image_split), 2, 0, 0)
    images, _ = dense.transform(image_split.batch(indices, CPU, flips)[0])
    student.train()  # as in the step: a norm's batch statistics
    ours, theirs = (
        each.head(list(each.backbone(images.tensors).values()))["cls_logits"] for each in (student, dense)
    )
    expected = logit_distance(ours, theirs).item()
    assert expected > 0.1
    assert steps[0.0, 3.0] - steps[0.0, 0.0] == pytest.approx(3 * expected, rel=1e-4)
    maps = [feature_maps(each.backbone(images.tensors)) for each in (student, dense)]
    kept = graph.features["backbone"]
    distances = [
        correlation_distance(a, b[:, np.flatnonzero(np.isin(index, keep[group]))]).item()
        for a, b, (group, index) in zip(*maps, kept, strict=True)
    ]
    assert steps[2.0, 3.0] - steps[0.0, 3.0] == pytest.approx(2 * sum(distances), rel=1e-4)


def test_what_the_head_predicts_from_is_taught(image_split: Any) -> None:
    """The loss of a step is that without it, and the distances of what the last layers of the head read."""
    dense = retinanet()
    graph = analyze(dense, detector_inputs((64, 64)))
    for module in dense.head.modules():  # fresh ones give next to nothing
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    keep = {name: range(0, group.width, 2) for name, group in graph.prunable.items()}
    student = prune(dense, graph, keep)
    steps = {}
    for head in (False, True):
        settings = TrainSettings(1, batch_size=2, distill=2.0)
        teacher = Teacher(dense, graph, keep, head=head)
        (steps[head],) = train(student, image_split, settings, CPU, teacher).losses
    indices, flips = draw_batch(len(image_split), 2, 0, 0)
    images, _ = dense.transform(image_split.batch(indices, CPU, flips)[0])
    student.train()  # as in the step: a norm's batch statistics
    maps = [feature_maps(each.backbone(images.tensors)) for each in (student, dense)]
    expected = 0.0
    for name in ("classification_head", "regression_head"):
        towers = [getattr(each.head, name).conv for each in (student, dense)]
        for ours, theirs in zip(*maps, strict=True):
            read = [towers[0](ours), towers[1](theirs)[:, ::2]]
            flat = [each.detach().transpose(0, 1).flatten(1).numpy() for each in read]
            normal = [(each.T - each.mean(1)) / np.maximum(each.std(1), 1e-6) for each in flat]
            # half of the squared difference is 1 - r, and 0.5 or 0 where one or both are constant
            expected += np.square(normal[0] - normal[1]).mean() / 2 / 4  # the mean over four levels
    assert steps[True] - steps[False] == pytest.approx(2 * expected, rel=1e-3)


def test_no_logits_are_distilled_where_none_are_known(toy: Any) -> None:
    assert not Teacher(toy, graph_of((None, [-1] * WIDTH), (None, [-1] * WIDTH)), {}, logits=True).logits


def test_a_detector_without_a_backbone_is_refused(toy: Any) -> None:
    with pytest.raises(ModelError, match="set distill to 0"):
        Teacher(nn.Linear(2, 2), SimpleNamespace(features={}, head=""), {})
    with pytest.raises(ModelError, match="set distill to 0"):
        Teacher(toy, SimpleNamespace(features={"backbone": []}, head=""), {})


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
    assert teacher.loss(Captured(images, features))["features"].item() == pytest.approx(
        (1 - np.array(r)).mean(1).sum(), abs=1e-4
    )
    assert teacher.loss(Captured(images, features[:2] + dense_features[2:]))[
        "features"
    ].item() == pytest.approx(0, abs=1e-4)


def test_all_that_is_compared_comes_to_the_device_that_the_detectors_are_on_already(toy: Any) -> None:
    """As on a GPU, whose tensors meet none of the CPU; torch's `meta` device refuses them in the same way."""
    with pytest.raises(RuntimeError, match="meta"):
        torch.rand(2, device="meta") * torch.rand(2)
    importance = {"a": np.array([1.0, 9.0, 3.0, 0.0, 2.0, 9.0])}
    graph = graph_of(("a", list(range(WIDTH))), (None, [-1] * WIDTH))
    toy.to("meta")
    teacher = Teacher(toy, graph, {"a": [0, 2, 4]}, importance)
    student = [torch.rand(2, channels, 16, 16, device="meta") for channels in (3, WIDTH)]
    student[1] = student[1][:, :, :8, :8]
    for _ in range(2):
        loss = teacher.loss(Captured(torch.rand(2, 3, 16, 16, device="meta"), student))["features"]
        assert loss.device.type == "meta"
