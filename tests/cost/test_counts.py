"""Costs in closed form, against torchvision's own figures and brute force."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models import detection, resnet50
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from autoprune.cost.counts import CostModel, Terms
from autoprune.graph import analyze, prune


def test_retinanet_has_the_parameters_that_torchvision_says():
    """And the GFLOPs, see `tests/cli/test_inspect.py`."""
    meta = detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta
    body = resnet50(norm_layer=FrozenBatchNorm2d)
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=extra)
    model = detection.RetinaNet(backbone, num_classes=91, min_size=64, max_size=64)
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    assert round(graph.mparams() * 1e6) == meta["num_params"]


def _random_cost_model(rng: np.random.Generator) -> tuple[CostModel, list[tuple[int, tuple[int, ...]]]]:
    groups, count = 6, 9
    forms = rng.integers(0, 3, (count, groups + 1)).astype(float)
    forms[-1] = [0] * groups + [1]
    parts = [
        (int(rng.integers(1, 10**6)), tuple(rng.integers(0, count, rng.integers(0, 4)).tolist()))
        for _ in range(40)
    ]
    terms = Terms.collect(parts, one=count - 1)
    unit = rng.integers(1, 5, groups)
    names = tuple("abcdef")
    return CostModel(names, unit * 64, unit, forms, terms, terms, terms), parts


def test_a_batch_of_policies_costs_what_each_does_alone():
    rng = np.random.default_rng(0)
    cost, parts = _random_cost_model(rng)
    widths = cost.unit * rng.integers(1, 64, (3, 1000, 6))
    flops = cost.flops(widths)
    assert flops.shape == (3, 1000)
    assert flops.dtype == np.int64
    for at in [(0, 0), (1, 511), (1, 512), (2, 999)]:
        lengths = [int(form[:-1] @ (widths[at] // cost.unit) + form[-1]) for form in cost.forms]
        expected = sum(
            constant * int(np.prod([lengths[f] for f in factors], dtype=object))
            for constant, factors in parts
        )
        assert flops[at] == expected


def test_terms_with_the_same_factors_are_added_up():
    terms = Terms.collect([(2, (1, 0)), (3, (0, 1)), (5, ())], one=2)
    assert sorted(terms.constants) == [5, 5]
    assert terms(np.array([[2.0], [7.0], [1.0]])) == pytest.approx([5 * 14 + 5])


class _Written(TorchDispatchMode):
    """Bytes of all results of ops that are new tensors."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.total += sum(t.numel() * t.element_size() for t in tensors)
        return out


def test_activation_bytes_are_those_of_the_pruned_model():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 2, 1),
    ).eval()  # fmt: skip
    x = torch.rand(2, 3, 16, 16)
    graph = analyze(model, (x,))
    for keep in ({}, {"0": [0, 3, 5], "3": [1]}):
        pruned = prune(model, graph, keep)
        with torch.no_grad(), _Written() as written:
            pruned(x)
        widths = graph.vector({name: len(kept) for name, kept in keep.items()})
        assert graph.cost.activations(widths) == written.total
