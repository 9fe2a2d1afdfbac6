"""What `analyze` finds on small models written out here, what it refuses, and that it leaves no mark."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.ao.quantization import FakeQuantize
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ModelError
from autoprune.graph import analyze, mask, prune

X = torch.rand(2, 3, 8, 8)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, 5)
        self.unused = nn.Conv2d(7, 7, 1)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.outer(self.inner(x).relu_())
        return self.head(x.flatten(1))


def test_groups_members_and_roles():
    graph = analyze(Residual(), (X,))
    assert list(graph.groups) == ["stem", "inner", "head"]
    assert [(g.width, g.unit, g.prunable) for g in graph.groups.values()] == [
        (8, 1, True),
        (6, 1, True),
        (5, 1, False),
    ]
    stem = graph.groups["stem"]
    found = {(name, axis): role for (name, axis, _), role in zip(stem.members, stem.roles, strict=True)}
    assert found == {
        ("stem.weight", 0): "producer", ("stem.bias", 0): "other",
        ("norm.weight", 0): "norm", ("norm.bias", 0): "norm",
        ("norm.running_mean", 0): "norm", ("norm.running_var", 0): "norm",
        ("inner.weight", 1): "consumer",
        ("outer.weight", 0): "producer", ("outer.bias", 0): "other",
        ("head.weight", 1): "consumer",
    }  # fmt: skip
    flattened = next(index for name, _, index in stem.members if name == "head.weight")
    assert flattened.tolist() == np.repeat(np.arange(8), 64).tolist()


def test_the_model_is_left_as_it_was():
    model = Residual()
    model.train()
    model.norm.eval()
    model.register_buffer("calls", torch.zeros(1))
    model.register_forward_pre_hook(lambda module, _: (module.calls.add_(1), torch.rand(1), None)[2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    analyze(model, (X,))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.norm.training
    assert not model._forward_hooks
    assert not any(child._forward_hooks for child in model.children())
    assert not any("autoprune" in key for p in model.parameters() for key in vars(p))


def test_a_batch_statistic_in_training_mode_is_not_traced():
    model = Residual().train()
    assert analyze(model, (X,)).gflops() == analyze(model.eval(), (X,)).gflops()


SAME_KIND = "give inputs of the same dtype and device"


def retinanet():
    return build(ModelSpec(name="retinanet_resnet18_fpn", num_classes=3, arguments={"min_size": 64}))


@pytest.mark.parametrize(
    ("model", "inputs", "said"),
    [
        (Residual(), (X[:, :2],), r".*fails on .* \(\[2, 2, 8, 8\] float32 on cpu\): RuntimeError: .*"),
        (Residual(), (X, X), r".*TypeError: .*positional argument.*"),
        (Residual(), (X.numpy(),), r".*\(ndarray\): TypeError: .*; give tensors, such as torch.*"),
        (Residual(), (), r".*TypeError: .*; give the model's arguments: .*"),
        (Residual().half(), (X,), r".*; its parameters are float16 on cpu; " + SAME_KIND),
        (Residual(), ((X * 255).byte(),), r".*; its parameters are float32 on cpu; " + SAME_KIND),
        (Residual(), ("image.png",), r".*\(str\): .*; give tensors: \(images,\), or .*"),
        ("resnet18", (X,), r"the model is a str; give a torch\.nn\.Module"),
        (Residual, (X,), r"the model is the class Residual; give a torch\.nn\.Module"),
        (retinanet(), (X[0],), r".*; a detector takes one list of images: \(\[image\],\)"),
        (Residual(), X, r"example_inputs is a Tensor; give a tuple.*"),
        (Residual(), {"x": X}, r"example_inputs is a dict; give a tuple.*"),
        (nn.DataParallel(Residual()), (X,), r".*DataParallel; give model\.module"),
        (torch.compile(Residual()), (X,), r".*OptimizedModule; give model\._orig_mod"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_in_one_line(model, inputs, said):
    with pytest.raises(ModelError, match=f"^{said}$") as caught:
        analyze(model, inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*(is deprecated|Lazy modules|quantization)")
@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (
            lambda: torch.jit.script(nn.ReLU()),
            r"is a ScriptModule; give the eager model that it was made from",
        ),
        (FakeQuantize, r"is quantized \(FakeQuantize\); prune the float model, then quantize the pruned one"),
    ],
)
def test_what_cannot_be_traced_is_found_inside(inside, said):
    with pytest.raises(ModelError, match=f"^`1` inside the model {said}$"):
        analyze(nn.Sequential(nn.Conv2d(3, 4, 1), inside(), nn.Conv2d(4, 2, 1)), (X,))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_weight_without_a_shape_is_refused():
    with pytest.raises(ModelError, match=r"^`0\.weight` has no shape yet; call the model once.*$"):
        analyze(nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 2, 1)), (X,))


def test_half_precision_is_traced_like_single():
    model = Residual()
    single = analyze(model, (X,))
    half = analyze(model.bfloat16(), (X.bfloat16(),))
    assert list(half.prunable) == list(single.prunable)
    assert half.gflops() == single.gflops()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_a_model_of_half_precision_is_pruned_within_its_precision(dtype, rounding):
    torch.manual_seed(0)
    model, x = Residual().to(dtype).eval(), X.to(dtype)
    graph = analyze(model, (x,))
    keep = {name: group.units[1::2].ravel().tolist() for name, group in graph.prunable.items()}
    with torch.no_grad():
        got, expected = prune(model, graph, keep)(x), mask(model, graph, keep)(x)
    assert got.dtype == dtype
    assert (got - expected).abs().max() <= rounding * expected.abs().max()


def test_a_model_compiled_in_place_is_pruned_as_it_is():
    torch.manual_seed(0)
    model = Residual().eval()
    model.compile(backend="eager")
    graph = analyze(model, (X,))
    keep = {name: group.units[1::2].ravel().tolist() for name, group in graph.prunable.items()}
    with torch.no_grad():
        torch.testing.assert_close(prune(model, graph, keep)(X), mask(model, graph, keep)(X))
    assert list(analyze(model, (X,)).prunable) == list(analyze(Residual(), (X,)).prunable)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model = Residual().eval()
        graph = analyze(model, (X,))
        keep = {name: group.units[1::2].ravel().tolist() for name, group in graph.prunable.items()}
        torch.testing.assert_close(prune(model, graph, keep)(X), mask(model, graph, keep)(X))
    assert list(graph.prunable) == list(analyze(Residual(), (X,)).prunable)


def test_a_sharded_model_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Residual()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ModelError, match=r"`stem\.weight` is a DTensor\); give the plain model"):
            analyze(model, (X,))
        with pytest.raises(ModelError, match=r"DistributedDataParallel; give model\.module"):
            analyze(nn.parallel.DistributedDataParallel(Residual()), (X,))
    finally:
        dist.destroy_process_group()
