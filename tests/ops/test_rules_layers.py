"""Rules of norms, softmax, pooling and resizing, held against the masked model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from autoprune.graph import analyze


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(12),
        nn.BatchNorm2d(12, affine=False),
        nn.BatchNorm2d(12, track_running_stats=False),
        nn.InstanceNorm2d(12, affine=True),
        nn.GroupNorm(4, 12),
        nn.GroupNorm(12, 12),
    ],
)
def test_norms_of_single_channels_and_of_groups(check_op, norm):
    graph = check_op(nn.Sequential(norm, nn.Conv2d(12, 12, 1)))
    unit = 12 // norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
    assert graph.groups["enter"].unit == unit


@pytest.mark.parametrize(
    "function",
    [
        nn.GroupNorm(1, 12),
        nn.LayerNorm([12, 6, 6]),
        lambda x: F.layer_norm(x.movedim(1, -1), (12,)).movedim(-1, 1),
    ],
)
def test_norms_over_all_channels_freeze_them(check_op, function):
    check_op(function, reason="is normalized over all channels")


class OnAxes(nn.Module):
    """A layer on an input whose channels were moved to another axis, and back."""

    def __init__(self, layer, forth, back):
        super().__init__()
        self.layer, self.forth, self.back = layer, forth, back

    def forward(self, x):
        return self.back(self.layer(self.forth(x)), x)


def as_space(layer):
    """Channels lie where the layer has space: [2, 36, 12]."""
    return OnAxes(
        layer, lambda x: x.flatten(2).transpose(1, 2), lambda y, x: y.transpose(1, 2).unflatten(2, (6, 6))
    )


def as_batch(layer):
    """Each channel is a sample of its own: [24, 1, 6, 6]."""
    return OnAxes(
        layer,
        lambda x: x.reshape(x.shape[0] * x.shape[1], 1, *x.shape[2:]),
        lambda y, x: y.reshape(*x.shape[:2], *y.shape[2:]),
    )


@pytest.mark.parametrize(
    "layer",
    [
        as_space(nn.InstanceNorm1d(36)),
        as_space(nn.GroupNorm(4, 36)),
        as_space(nn.BatchNorm1d(36, track_running_stats=False)),
        as_batch(nn.BatchNorm2d(1, track_running_stats=False)),
    ],
)
def test_statistics_over_an_axis_of_channels_freeze_them(check_op, layer):
    check_op(layer, reason="is normalized over all channels")


def test_a_norm_over_space_alone_freezes_no_channels(check_op):
    check_op(nn.LayerNorm([6, 6]))
    check_op(as_space(nn.BatchNorm1d(36)))
    check_op(as_batch(nn.BatchNorm2d(1)))


def test_a_shift_is_no_zero_where_it_is_not_that_of_the_channel(check_op):
    total = "is reduced by sum"
    check_op(nn.Sequential(nn.LayerNorm(6), Total()), reason=total)
    check_op(nn.Sequential(nn.LayerNorm(6, bias=False), Total()))
    check_op(nn.Sequential(as_space(nn.BatchNorm1d(36)), Total()), reason=total)
    check_op(nn.Sequential(as_batch(nn.GroupNorm(1, 1)), Total()), reason=total)
    check_op(nn.Sequential(as_batch(nn.GroupNorm(1, 1, affine=False)), Total()))


def test_an_affine_norm_gives_zeros_where_its_channels_are_removed(check_op):
    # The shift of a removed channel is removed too; without parameters, what came in as zero may be shifted.
    total = "is reduced by sum"
    check_op(nn.Sequential(nn.BatchNorm2d(12), Total()))
    check_op(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(12), Total()))
    check_op(nn.Sequential(nn.Sigmoid(), Standardize(), Total()), reason=total)


def test_norms_without_parameters(check_op):
    check_op(F.instance_norm)
    # Nothing that shrinks tells a functional group norm, or a module without a weight, its number of groups.
    check_op(nn.GroupNorm(4, 12, affine=False), reason="has a fixed length in the model's code")


class Standardize(nn.Module):
    """Instance norm without parameters."""

    def forward(self, x):
        return F.instance_norm(x)


class Total(nn.Module):
    """Adds the sum over channels to each of them."""

    def forward(self, x):
        return x + x.sum(1, keepdim=True)


@pytest.mark.parametrize("softmax", [torch.softmax, torch.log_softmax])
def test_softmax(check_op, softmax):
    check_op(lambda x: softmax(x, 1), reason="is normalized by softmax")
    check_op(lambda x: softmax(x.flatten(2), 2).unflatten(2, (6, 6)))


@pytest.mark.parametrize(
    "function",
    [
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.AdaptiveMaxPool2d((2, 3)),
        nn.ReflectionPad2d(2),
        nn.ReplicationPad2d(1),
        *(
            nn.Upsample(scale_factor=2, mode=mode)
            for mode in ("nearest", "bilinear", "bicubic", "nearest-exact")
        ),
        lambda x: F.interpolate(x, (4, 4), mode="bilinear", antialias=True),
        lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2, dtype=x.dtype), align_corners=False),
        lambda x: F.max_pool1d(x.flatten(2), 3)[..., None],
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    ],
)
def test_pooling_and_resizing_keep_channels_apart(check_op, function):
    check_op(function)


def test_pooling_over_channels_freezes_them(check_op):
    check_op(
        lambda x: F.max_pool2d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2),
        reason="is pooled or resized as space",
    )


def test_boxes_are_cut_out_of_all_channels(check_op):
    boxes = torch.tensor([[0, 0, 0, 4, 4], [1, 1, 1, 5, 5]], dtype=torch.float64)
    check_op(lambda x: roi_align(x, boxes, 3))


def test_predicted_box_coordinates_are_frozen():
    class Boxes(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.boxes = nn.Conv2d(3, 8, 1), nn.Linear(3, 4)

        def forward(self, x):
            return roi_align(self.map(x), [self.boxes(x.mean((2, 3)))], 2)

    graph = analyze(Boxes(), (torch.rand(1, 3, 6, 6),))
    assert not graph.groups["boxes"].prunable


def test_predicted_coordinates_to_sample_at_are_frozen(randomize, keep_sets, compare):
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.flow, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(10, 3, 1)

        def forward(self, x):
            maps = self.map(x)
            flow = self.flow(maps)
            moved = F.grid_sample(maps, flow.permute(0, 2, 3, 1), align_corners=False)
            return self.leave(torch.cat([moved, flow], 1))

    model, inputs = randomize(Flow().double()), (torch.rand(2, 3, 6, 6, dtype=torch.float64),)
    graph = analyze(model, inputs)
    assert list(graph.prunable) == ["map"]
    assert compare(model, graph, inputs, keep_sets(graph, 0, 0.5))[1] <= 1e-12
