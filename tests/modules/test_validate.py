"""Models and inputs that can't be traced: each is refused in one line that says what to give instead."""

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
from autoprune.graph import analyze
from autoprune.modules.validate import failure

X = torch.rand(2, 3, 8, 8)
SAME_KIND = "give inputs of the same dtype and device"


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 5)

    def forward(self, x):
        return self.head(F.relu(self.stem(x)).flatten(1))


def retinanet():
    return build(ModelSpec(name="retinanet_resnet18_fpn", num_classes=3, arguments={"min_size": 64}))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Small(), (X[:, :2],), r".*fails on .* \(\[2, 2, 8, 8\] float32 on cpu\): RuntimeError: .*"),
        (Small(), (X, X), r".*TypeError: .*positional argument.*"),
        (Small(), (X.numpy(),), r".*\(ndarray\): TypeError: .*; give tensors, such as torch.*"),
        (Small(), (), r".*TypeError: .*; give the model's arguments: .*"),
        (Small().half(), (X,), r".*; its parameters are float16 on cpu; " + SAME_KIND),
        (Small(), ((X * 255).byte(),), r".*; its parameters are float32 on cpu; " + SAME_KIND),
        (Small(), ("image.png",), r".*\(str\): .*; give tensors: \(images,\), or .*"),
        ("resnet18", (X,), r"the model is a str; give a torch\.nn\.Module"),
        (Small, (X,), r"the model is the class Small; give a torch\.nn\.Module"),
        (retinanet(), (X[0],), r".*; a detector takes one list of images: \(\[image\],\)"),
        (Small(), X, r"example_inputs is a Tensor; give a tuple.*"),
        (Small(), {"x": X}, r"example_inputs is a dict; give a tuple.*"),
        (nn.DataParallel(Small()), (X,), r".*DataParallel; give model\.module"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_in_one_line(model, inputs, message):
    with pytest.raises(ModelError, match=f"^{message}$") as caught:
        analyze(model, inputs)
    assert "\n" not in str(caught.value)


def test_what_torch_compile_returns_is_refused_in_one_line():
    message = r".*OptimizedModule; give model\._orig_mod"
    # Made here, as it imports torch's compiler, which every process would do that collects the tests.
    test_what_cannot_be_traced_is_refused_in_one_line(torch.compile(Small()), (X,), message)


@pytest.mark.filterwarnings("ignore:.*(is deprecated|Lazy modules|quantization)")
@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (
            lambda: torch.jit.script(nn.ReLU()),
            r"is a ScriptModule; give the eager model that it was made from",
        ),
        (FakeQuantize, r"is quantized \(FakeQuantize\); prune the float model, then quantize the pruned one"),
    ],
)
def test_what_cannot_be_traced_is_found_inside(inside, message):
    with pytest.raises(ModelError, match=f"^`1` inside the model {message}$"):
        analyze(nn.Sequential(nn.Conv2d(3, 4, 1), inside(), nn.Conv2d(4, 2, 1)), (X,))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_weight_without_a_shape_is_refused():
    with pytest.raises(ModelError, match=r"^`0\.weight` has no shape yet; call the model once.*$"):
        analyze(nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 2, 1)), (X,))


def test_a_sharded_model_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Small()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ModelError, match=r"`stem\.weight` is a DTensor\); give the plain model"):
            analyze(model, (X,))
        with pytest.raises(ModelError, match=r"DistributedDataParallel; give model\.module"):
            analyze(nn.parallel.DistributedDataParallel(Small()), (X,))
    finally:
        dist.destroy_process_group()


def test_a_long_error_is_cut():
    error = RuntimeError("x" * 1000)
    line = failure(Small(), (X,), error)
    assert line.startswith(
        "Small fails on the example inputs ([2, 3, 8, 8] float32 on cpu): RuntimeError: xxx"
    )
    assert "…; check model(*example_inputs)" in line
    assert len(line) < 400


def test_inputs_of_any_structure_are_described():
    line = failure(Small(), ([X, X, X, X], {"a": 1}), ValueError())
    assert (
        "([[2, 3, 8, 8] float32 on cpu, [2, 3, 8, 8] float32 on cpu, [2, 3, 8, 8] float32 on cpu, …], dict)"
        in line
    )
    assert "ValueError; " in line
