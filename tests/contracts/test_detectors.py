"""The contract of every detector: call, input size, feature maps, pruning, recovery, files.

A new library needs a line in `SOURCES`; detectors of libraries that are not installed are skipped.
"""

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoprune
from autoprune.config import ModelSpec
from autoprune.detectors import detector_inputs, load_dense, resize_rule, resized
from autoprune.detectors.inputs import prepared
from autoprune.detectors.parts import find_parts
from autoprune.export import save_detector
from autoprune.fields import VENDORS
from autoprune.graph import ChannelGraph, analyze, prune
from autoprune.graph.surgery import mask
from autoprune.policy import Policy, hash_weights
from autoprune.training import Reconstructor, Teacher, TrainSettings, train
from autoprune.vendors import VendorDetector

CLASSES = 4  # background included
SIZE = (64, 64)
RESNET = {"model_type": "rt_detr_resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32],
          "depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage3", "stage4"]}  # fmt: skip
RT_DETR = {
    "model_type": "rt_detr", "backbone_config": RESNET, "encoder_in_channels": [24, 32],
    "feat_strides": [16, 32], "encode_proj_layers": [1], "num_feature_levels": 2, "encoder_hidden_dim": 16,
    "d_model": 16, "decoder_in_channels": [16, 16], "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_layers": 2, "num_queries": 12,
    "num_denoising": 8,
}  # fmt: skip
SOURCES: dict[str, dict[str, Any]] = {
    "retinanet_resnet18_fpn": {"min_size": 64, "max_size": 64, "fpn_channels": 16, "returned_layers": [2, 3]},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"min_size": 64, "max_size": 64},
    "timm:resnet10t": {"min_size": 64, "max_size": 64, "fpn_channels": 16},
    "ultralytics:yolov8n.yaml": {"imgsz": 64},
    "transformers:rt_detr": {"config": RT_DETR, "size": 64},
    "libreyolo:yolox-n": {},
}
"""Detectors by their names, with the arguments of a small one."""


@pytest.fixture(scope="module", params=SOURCES)
def detector(request) -> nn.Module:
    """A dense detector, in eval mode, whose norms have seen images."""
    library = request.param.partition(":")[0]
    if library in VENDORS and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    model, spec = load_dense(request.param, SOURCES[request.param], CLASSES)
    model.spec = spec
    model.train()
    with torch.no_grad():
        model([torch.rand(3, *SIZE) for _ in range(4)], targets(4))
    return model.eval()


@pytest.fixture(scope="module")
def graph(detector: nn.Module) -> ChannelGraph:
    return analyze(detector, detector_inputs(SIZE))


@pytest.fixture(scope="module")
def keep(graph: ChannelGraph) -> dict[str, list[int]]:
    """Half of the channels of each group."""
    return {
        name: sorted(group.units[: (len(group.units) + 1) // 2].ravel().tolist())
        for name, group in graph.prunable.items()
        if len(group.units) > 1
    }


def targets(count: int) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[4.0, 6.0, 40.0, 44.0], [20.0, 10.0, 60.0, 58.0]])
    return [{"boxes": boxes, "labels": torch.tensor([1, CLASSES - 1])} for _ in range(count)]


class Images:
    """Random images of two sizes, as a training split."""

    def __len__(self) -> int:
        return 6

    def batch(
        self, indices: Any, device: Any, flip: Any = None
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        return [self.get(index)[0].float() / 255 for index in indices], targets(len(indices))

    def get(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        size, generator = (3, 64, 64 - 8 * (index % 2)), torch.Generator().manual_seed(index)
        return torch.randint(256, size, generator=generator, dtype=torch.uint8), targets(1)[0]

    def fingerprint(self) -> dict[str, Any]:
        return {}


def test_training_mode_gives_losses_that_reach_every_trained_weight(detector: nn.Module) -> None:
    model = autoprune_copy(detector).train()
    losses = model([torch.rand(3, 64, 64), torch.rand(3, 48, 64)], targets(2))
    assert losses
    assert all(value.dim() == 0 and value.isfinite() for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert len(without) <= 0.1 * len(list(model.parameters())), without


def autoprune_copy(model: nn.Module) -> nn.Module:
    return prune(model, analyze(model, detector_inputs(SIZE)), {})


def test_eval_mode_gives_boxes_in_the_images_own_pixels(detector: nn.Module) -> None:
    sizes = [(64, 64), (40, 56)]
    with torch.no_grad():
        selected = detector([torch.rand(3, *size) for size in sizes])
    assert len(selected) == 2
    for detections, (height, width) in zip(selected, sizes, strict=True):
        boxes, scores, labels = (detections[name] for name in ("boxes", "scores", "labels"))
        assert boxes.shape == (len(scores), 4)
        assert len(labels) == len(scores)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert ((labels >= 1) & (labels < CLASSES)).all()
        assert (scores.diff() <= 0).all()


def test_the_input_size_is_what_the_detector_says(detector: nn.Module) -> None:
    rule = resize_rule(detector)
    assert rule is not None
    for size in ((64, 64), (90, 120)):
        given = prepared(detector, [torch.rand(3, *size)])
        assert given is not None
        ((height, width),) = given[0].image_sizes
        if rule.fixed is not None:
            assert (height, width) == rule.fixed
        else:
            ratio = min(rule.min_size / min(size), rule.max_size / max(size))
            assert abs(height - size[0] * ratio) <= 1
            assert abs(width - size[1] * ratio) <= 1


def test_another_input_size_is_heeded_and_leaves_the_detector_as_it_is(detector: nn.Module) -> None:
    rule = resize_rule(detector)
    assert rule is not None
    if rule.fixed is not None:
        larger = replace(rule, fixed=(rule.fixed[0] * 2, rule.fixed[1] * 2))
    else:
        larger = replace(rule, min_size=rule.min_size * 2, max_size=rule.max_size * 2)
    other = resized(detector, larger)
    image = torch.rand(3, 64, 64)
    before, after = (prepared(model, [image])[0].tensors.shape[-2:] for model in (detector, other))
    assert after == (2 * before[0], 2 * before[1])
    assert resize_rule(detector) == rule


def test_boxes_go_into_the_batch_and_back(detector: nn.Module) -> None:
    image, target = torch.rand(3, 80, 50), targets(1)[0]
    given = prepared(detector, [image], [dict(target)])
    assert given is not None
    batch, placed = given
    assert placed is not None
    selected = {"boxes": placed[0]["boxes"], "scores": torch.ones(2), "labels": target["labels"]}
    (back,) = detector.transform.postprocess([selected], batch.image_sizes, [(80, 50)])
    expected = target["boxes"].minimum(torch.tensor([50.0, 80.0, 50.0, 80.0]))
    torch.testing.assert_close(
        back["boxes"].minimum(torch.tensor([50.0, 80.0, 50.0, 80.0])), expected, atol=1e-3, rtol=0
    )


def test_the_feature_maps_carry_channels_that_can_be_pruned(detector: nn.Module, graph: ChannelGraph) -> None:
    parts = find_parts(detector, graph)
    assert parts is not None
    groups = [group for group, _ in parts.features]
    assert groups
    assert any(group in graph.prunable for group in groups)


def raw(model: nn.Module, images: list[Tensor]) -> list[Tensor]:
    """The outputs before boxes are selected: of torchvision's detectors what backbone and head return."""
    given = prepared(model, images)
    assert given is not None
    if isinstance(model, VendorDetector):
        output = model.raw(given[0])
    else:
        maps = list(model.backbone(given[0].tensors).values())
        output = (model.head if hasattr(model, "head") else model.rpn.head)(maps)
    return [
        x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()
    ]


def test_pruned_equals_masked(detector: nn.Module, graph: ChannelGraph, keep: dict[str, list[int]]) -> None:
    """Logits and boxes, in float64, of the queries that both choose alike."""
    pruned, masked = (make(detector, graph, keep).double().eval() for make in (prune, mask))
    images = [torch.rand((3, *SIZE), dtype=torch.float64, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        ours, theirs = raw(pruned, images), raw(masked, images)
    same = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.shape == b.shape]
    assert same
    for a, b in same:
        assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1)


def test_recovery_and_files(
    detector: nn.Module, graph: ChannelGraph, keep: dict[str, list[int]], tmp_path: Any
) -> None:
    """Reconstructed, taught by the dense detector, saved, loaded: the same detections."""
    cpu, split = torch.device("cpu"), Images()
    pruned = Reconstructor(detector, graph, split, 4, cpu, 0)(prune(detector, graph, keep), keep).model
    teacher = Teacher(detector, graph, keep, head=True)
    settings = TrainSettings(2, batch_size=2, learning_rate=1e-4, distill=1.0)
    recovered = train(pruned, split, settings, cpu, teacher)
    assert all(torch.isfinite(torch.tensor(recovered.losses)))
    spec: ModelSpec = detector.spec
    policy = Policy(
        model=spec,
        weights_sha256=hash_weights(detector.state_dict()),
        criterion="l2",
        input_size=SIZE,
        widths={name: graph.groups[name].width for name in keep},
        keep={name: tuple(kept) for name, kept in keep.items()},
    )
    save_detector(tmp_path / "out", recovered.model, policy)
    loaded = autoprune.load(tmp_path / "out")
    images = [torch.rand((3, 48, 64), generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        (expected,), (selected,) = recovered.model.eval()(images), loaded.eval()(images)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(expected[name], selected[name])
