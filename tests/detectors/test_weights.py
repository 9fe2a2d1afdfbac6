import inspect
import io
import itertools
import sys
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from autoprune import detectors as models
from autoprune import progress
from autoprune.config import ModelSpec, make_config
from autoprune.detectors import weights as weight_files
from autoprune.errors import ModelError, RunError
from autoprune.graph import analyze

SMALL = {"min_size": 64, "max_size": 64, "fpn_channels": 32, "returned_layers": [2, 3]}
BCCD = Path(__file__).parents[2] / "shared/models/retinanet_resnet18_bccd.safetensors"


def small(classes: int = 4, norm: str = "batch", name: str = "retinanet_resnet18_fpn") -> nn.Module:
    return models.build(ModelSpec(name=name, arguments=SMALL, num_classes=classes, norm=norm))


def shake(model: nn.Module) -> nn.Module:
    """Gives the norms statistics and weights as after a training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.1, 3),
                (module.weight.data, 0.5, 2),
                (module.bias.data, -1, 1),
            ):
                tensor.uniform_(low, high)
    return model


@torch.no_grad()
def features(model: nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(model.eval().backbone(torch.rand((1, 3, 64, 64), generator=generator)).values())


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Equal to round-off, relative to the largest value of each feature map."""
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# building


def test_every_torchvision_detector_has_a_name():
    builders = {name for name in dir(detection) if callable(getattr(detection, name)) and "_fpn" in name}
    builders |= {"ssd300_vgg16", "ssdlite320_mobilenet_v3_large"}
    assert {name for name in builders if name.islower()} <= set(models.names())


def test_a_torchvision_name_gives_torchvisions_own_keys_without_a_download():
    spec = ModelSpec(name="fcos_resnet50_fpn", num_classes=3, arguments={"min_size": 100})
    mine = models.build(spec)
    reference = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in mine.state_dict().items()} == shapes
    assert mine.transform.min_size == (100,)


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fcos_resnet18_fpn", "retinanet_resnet18_fpn_v2"])
def test_own_detectors_are_torchvisions_on_a_smaller_backbone(name):
    """Same keys outside the backbone's body as the ResNet-50 detector, same anchors, same outputs' form."""
    reference = getattr(detection, name.replace("18", "50"))(
        weights=None, weights_backbone=None, num_classes=5
    )
    mine = models.build(ModelSpec(name=name, num_classes=5))
    outside = [
        {key: tensor.shape for key, tensor in model.state_dict().items() if ".body." not in key}
        for model in (mine, reference)
    ]
    narrow = ("backbone.fpn.inner_blocks", "backbone.fpn.extra_blocks.p6.weight")  # read the body's channels
    assert outside[0].keys() == outside[1].keys()
    assert all(shape == outside[1][key] for key, shape in outside[0].items() if not key.startswith(narrow))
    assert mine.anchor_generator.sizes == reference.anchor_generator.sizes
    assert mine.anchor_generator.aspect_ratios == reference.anchor_generator.aspect_ratios
    assert getattr(mine.head.regression_head, "_loss_type", None) == getattr(
        reference.head.regression_head, "_loss_type", None
    )
    assert (mine.score_thresh, mine.nms_thresh) == (reference.score_thresh, reference.nms_thresh)


@pytest.mark.parametrize(("layers", "stride"), [([2, 3, 4], 8), ([2, 3], 8), ([1, 2], 4), ([3, 4], 16)])
def test_default_anchors_follow_the_levels_strides(layers, stride):
    arguments = SMALL | {"returned_layers": layers}
    for name, scale in (("retinanet_resnet18_fpn", 4), ("fcos_resnet18_fpn", 1)):
        model = models.build(ModelSpec(name=name, arguments=arguments, num_classes=2))
        levels = features(model)
        assert [64 // level.shape[-1] for level in levels] == [
            min(stride * 2**k, 64) for k in range(len(layers) + 2)
        ]
        assert [sizes[0] for sizes in model.anchor_generator.sizes] == [
            scale * stride * 2**k for k in range(len(levels))
        ]


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fcos_resnet18_fpn", "retinanet_resnet18_fpn_v2"])
def test_small_detectors_train_and_detect(name):
    arguments = SMALL | {"fpn_channels": 64}
    model = models.build(ModelSpec(name=name, arguments=arguments, num_classes=4)).train()
    image = torch.rand(3, 64, 64)
    boxes = torch.tensor([[5.0, 6.0, 40.0, 50.0]])
    losses = model([image, image], [{"boxes": boxes, "labels": torch.tensor([1])}] * 2)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "everything is trainable"
    found = model.eval()([image])[0]
    assert found["boxes"].shape[1] == 4
    assert set(found["labels"].tolist()) <= {1, 2, 3}


def test_anchor_sizes_can_be_given():
    arguments = SMALL | {"anchor_sizes": [8, 16, [30, 40, 50], 64]}
    model = models.build(ModelSpec(name="retinanet_resnet18_fpn", arguments=arguments, num_classes=2))
    assert model.anchor_generator.sizes == ((8, 10, 12), (16, 20, 25), (30, 40, 50), (64, 80, 101))


def test_the_seed_decides_fresh_weights_and_leaves_the_callers_generator_alone():
    spec = ModelSpec(name="retinanet_resnet18_fpn", arguments=SMALL, num_classes=2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (models.build(spec, seed).backbone.body.conv1.weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("retinanet_resnet18", {}, "did you mean retinanet_resnet18_fpn"),
        ("resnet18", {}, "unknown model 'resnet18'"),
        ("retinanet_resnet18_fpn", {"min_sise": 64}, "no `min_sise`; valid: min_size"),
        ("retinanet_resnet50_fpn", {"min_sise": 64}, "no `min_sise`; valid: min_size"),
        ("ssdlite320_mobilenet_v3_large", {"widht_mult": 1}, "no `widht_mult`"),
        ("retinanet_resnet18_fpn", {"weights": "x"}, "cannot hold `weights`"),
        ("retinanet_resnet18_fpn", {"returned_layers": [2, 4]}, "must be consecutive"),
        ("retinanet_resnet18_fpn", {"returned_layers": []}, "must be consecutive"),
        ("retinanet_resnet18_fpn", {"anchor_sizes": [8, 16]}, "needs 5 entries"),
        ("fcos_resnet18_fpn", {"fpn_channels": 40}, "failed to build"),
    ],
)
def test_a_wrong_name_or_argument_is_refused(name, arguments, message):
    with pytest.raises(ModelError) as error:
        models.build(ModelSpec(name=name, arguments=arguments, num_classes=2))
    assert message in one_line(error)


# norms


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_norms_change_kind_and_not_the_outputs(name):
    arguments = SMALL if "resnet18" in name else {}
    model = shake(models.build(ModelSpec(name=name, arguments=arguments, num_classes=3)))
    before, state = features(model), {k: v.clone() for k, v in model.state_dict().items()}
    frozen = models.with_norm(model, "frozen")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    again = models.with_norm(frozen, "batch")
    for converted in (frozen, again):
        assert_same(features(converted), before)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items()), "the argument is unchanged"


@pytest.mark.parametrize("kind", ["batch", "frozen"])
def test_conversion_is_exact_up_to_round_off(kind):
    """In float64, where round-off is 1e-16, whichever way the conversion goes."""
    model = shake(small(norm=kind)).double()
    converted = models.with_norm(model, "frozen" if kind == "batch" else "batch")
    image = torch.rand((1, 3, 64, 64), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (list(each.eval().backbone(image).values()) for each in (converted, model))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize(("norm", "moves"), [("freeze", False), ("train", True)])
def test_frozen_weights_train_their_norms_or_not(tmp_path, norm, moves):
    """Of weights with frozen norms: whether statistics move, and which tensors get gradients."""
    path = tmp_path / "frozen.safetensors"
    models.save_state(shake(small(norm="frozen")), path)
    kind = make_config(norm=norm).norm_kind
    model, _ = models.load_dense("retinanet_resnet18_fpn", SMALL, 4, kind, path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sum(maps.square().mean() for maps in model.train().backbone(torch.rand(2, 3, 64, 64)).values()).backward()
    state = model.state_dict()
    norms = [k.removesuffix("running_mean") for k in state if k.endswith("running_mean")]
    assert len(norms) == 15
    for name in norms:
        assert torch.equal(state[f"{name}running_mean"], before[f"{name}running_mean"]) is not moves
        assert torch.equal(state[f"{name}running_var"], before[f"{name}running_var"]) is not moves
    learning = {k for k, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    affine = {f"{name}{which}" for name in norms for which in ("weight", "bias")}
    assert affine & learning == (affine if moves else set())
    assert "backbone.body.conv1.weight" in learning


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_both_kinds_of_norm_have_the_same_groups_and_gflops(name):
    """So a policy that was found with one kind can be trained with the other."""
    arguments = SMALL if "resnet18" in name else {}
    graphs = []
    for kind in ("batch", "frozen"):
        model = models.build(ModelSpec(name=name, arguments=arguments, num_classes=3, norm=kind)).eval()
        graphs.append(analyze(model, models.detector_inputs((64, 64))))
    first, second = graphs
    assert list(first.prunable) == list(second.prunable)
    for group, other in zip(first.prunable.values(), second.prunable.values(), strict=True):
        assert (group.width, group.unit) == (other.width, other.unit)
        one, two = (
            {(tensor, axis): index.tolist() for tensor, axis, index in each.members}
            for each in (group, other)
        )
        assert one == two
    assert first.gflops() == second.gflops()


def test_norm_is_read_off_the_weights(tmp_path):
    for norm in ("batch", "frozen"):
        path = tmp_path / f"{norm}.safetensors"
        models.save_state(shake(small(norm=norm)), path)
        _, spec = models.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", path)
        assert spec.norm == norm
        other = "frozen" if norm == "batch" else "batch"
        converted, spec = models.load_dense("retinanet_resnet18_fpn", SMALL, 4, other, path)
        assert spec.norm == other
        assert_same(features(converted), features(shake(small(norm=norm))))


# weights


def test_weights_come_back_from_every_kind_of_file(tmp_path):
    model = shake(small())
    state = model.state_dict()
    files = {
        "a.safetensors": partial(models.save_state, model),
        "b.pt": partial(torch.save, state),
        "c.pth": partial(torch.save, {"model": state, "epoch": 3}),
        "d.pt": partial(torch.save, {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
        "e.pt": partial(torch.save, {"model_state_dict": state, "optimizer": {"lr": 0.1}}),
    }
    for name, save in files.items():
        save(tmp_path / name)
        loaded, spec = models.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", tmp_path / name)
        assert all(torch.equal(loaded.state_dict()[k], v) for k, v in state.items()), name
        assert spec == ModelSpec(name="retinanet_resnet18_fpn", arguments=SMALL, num_classes=4)
        assert not loaded.training


def test_float16_on_disk_is_float32_in_memory_and_half_the_file(tmp_path):
    model = shake(small())
    models.save_state(model, tmp_path / "whole.safetensors", metadata={"made": "by a test"})
    models.save_state(model, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.52 * sizes[0]
    for name, tensor in models.load_state(tmp_path / "half.safetensors").items():
        original = model.state_dict()[name]
        assert tensor.dtype == original.dtype
        assert torch.equal(
            tensor, original.to(torch.float16).to(original.dtype) if tensor.is_floating_point() else original
        )


def test_weights_on_a_full_disk_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    models.save_state({"a": torch.ones(2)}, path)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="disk is full"):
        models.save_state({"a": torch.zeros(2)}, path)
    assert models.load_state(path)["a"].sum() == 2
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


class Evil:
    def __reduce__(self):
        return (print, ("run from a pickle",))


def test_unreadable_weights_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save({"model": Evil()}, tmp_path / "evil2.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": torch.ones(1), "b": "text"}, tmp_path / "mixed.pt")
    messages = {
        "none.pt": "No such file",
        "text.pt": "no weights that can be read safely",
        "text.safetensors": "no weights that can be read safely",
        "empty.pt": "no weights that can be read safely",
        "evil.pt": "no weights that can be read safely",
        "evil2.pt": "no weights that can be read safely",
        "list.pt": "no state dict",
        "mixed.pt": "`b` is not a tensor",
    }
    for name, message in messages.items():
        with pytest.raises(ModelError) as error:
            models.load_state(tmp_path / name)
        assert message in one_line(error)
        assert name in one_line(error)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("retinanet_resnet18_fpn", "head.classification_head.cls_logits"),
        ("fcos_resnet18_fpn", "head.classification_head.cls_logits"),
    ],
)
def test_a_head_for_other_classes_starts_fresh_and_all_else_is_loaded(tmp_path, name, head):
    source = shake(small(classes=6, name=name))
    models.save_state(source, tmp_path / "w.safetensors")
    out = io.StringIO()
    with progress.show(Console(file=out, width=400)):
        loaded, spec = models.load_dense(name, SMALL, 3, "auto", tmp_path / "w.safetensors")
    assert spec.num_classes == 3
    assert head in out.getvalue()
    fresh = small(classes=3, name=name).state_dict()
    for key, tensor in loaded.state_dict().items():
        expected = fresh[key] if key.startswith(head) else source.state_dict()[key]
        assert torch.equal(tensor, expected), key


def test_two_stage_heads_are_resized_too(tmp_path):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    source = models.build(ModelSpec(name=name, num_classes=5))
    models.save_state(source, tmp_path / "w.safetensors")
    loaded, _ = models.load_dense(name, {}, 3, "auto", tmp_path / "w.safetensors")
    same = {k for k, v in loaded.state_dict().items() if torch.equal(v, source.state_dict()[k])}
    predictor = {k for k in loaded.state_dict() if "box_predictor" in k}
    assert same == loaded.state_dict().keys() - predictor


def test_the_number_of_classes_is_read_off_the_weights(tmp_path):
    for name in ("retinanet_resnet18_fpn", "fcos_resnet18_fpn"):
        models.save_state(small(classes=7, name=name), tmp_path / "w.safetensors")
        _, spec = models.load_dense(name, SMALL, None, "auto", tmp_path / "w.safetensors")
        assert spec.num_classes == 7


def test_weights_of_another_architecture_name_the_first_five_keys(tmp_path):
    state = small().state_dict()
    state["backbone.body.conv1.weight"] = torch.ones(2, 2)
    del state["backbone.body.layer1.0.conv1.weight"]
    models.save_state(state, tmp_path / "near.safetensors")
    models.save_state(small(name="fcos_resnet18_fpn"), tmp_path / "far.safetensors")
    with pytest.raises(ModelError) as error:
        models.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", tmp_path / "near.safetensors")
    text = one_line(error)
    assert "2 keys differ" in text
    assert "backbone.body.layer1.0.conv1.weight is missing" in text
    assert "backbone.body.conv1.weight is [2, 2], the model's [64, 3, 7, 7]" in text
    with pytest.raises(ModelError) as error:
        models.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", tmp_path / "far.safetensors")
    mine, other = set(small().state_dict()), set(small(name="fcos_resnet18_fpn").state_dict())
    named = [key for key in mine ^ other if f"{key} is " in one_line(error)]
    assert len(named) == 5


# torchvision's weight names; the hub's cache is filled by hand, so nothing is downloaded


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    cache = tmp_path / "hub/hub/checkpoints"
    cache.mkdir(parents=True)
    return cache


def test_torchvision_weights_load_as_torchvision_loads_them(hub):
    """Fills the cache with made-up weights and takes torchvision's own builder as the reference."""
    entry = detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1
    model = shake(models.build(ModelSpec(name="retinanet_resnet50_fpn", num_classes=91, norm="frozen")))
    model.backbone.body.layer3[2].bn1.running_var.fill_(1e-5)  # here an epsilon of 0 or of 1e-5 matters
    path = hub / Path(entry.url).name
    torch.save(model.state_dict(), path)
    reference = features(detection.retinanet_resnet50_fpn(weights=entry, progress=False))
    for given in (str(entry), "DEFAULT", path):
        mine, spec = models.load_dense("retinanet_resnet50_fpn", {}, None, "auto", given)
        assert (spec.norm, spec.num_classes) == ("frozen", 91)
        assert_same(features(mine), reference)
    path.rename(hub / "mine.pth")  # not torchvision's file any more, so the epsilon is the builder's
    mine, _ = models.load_dense("retinanet_resnet50_fpn", {}, None, "auto", hub / "mine.pth")
    assert_same(features(mine), features(model))


def test_weights_that_torchvision_runs_with_another_epsilon_are_all_known():
    named = set()
    for module in ("retinanet", "faster_rcnn", "mask_rcnn", "keypoint_rcnn", "fcos", "ssd", "ssdlite"):
        lines = inspect.getsource(sys.modules[f"torchvision.models.detection.{module}"]).splitlines()
        named |= {
            above.split("==")[1].strip(" :")
            for above, line in itertools.pairwise(lines)
            if "overwrite_eps(model, 0.0)" in line
        }
    assert named == weight_files.ZERO_EPS_WEIGHTS


def test_a_failed_download_and_an_unknown_weight_name_say_what_to_do(hub, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network\nat all")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ModelError) as error:
        models.load_dense("retinanet_resnet50_fpn", {}, 91, "auto", "COCO_V1")
    assert "retinanet_resnet50_fpn_coco" in one_line(error)
    assert "--weights" in one_line(error)
    for model, name in (
        ("retinanet_resnet50_fpn", "COCO_V9"),
        ("retinanet_resnet50_fpn", "RetinaNet_ResNet50_FPN_Weights.V9"),
        ("retinanet_resnet50_fpn", "nonsense.words"),
        ("retinanet_resnet18_fpn", "DEFAULT"),
    ):
        with pytest.raises(ModelError) as error:
            models.load_dense(model, {}, 91, "auto", name)
        assert f"no file {name}" in one_line(error)


# a user's factory


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """A folder with the module `mydetector`, as the current folder."""
    (tmp_path / "mydetector.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def sized(num_classes, width=4):\n    return nn.Conv2d(3, width * num_classes, 1)\n"
        "def fixed(width=4):\n    return nn.Conv2d(3, width, 1)\n"
        "def any_of(**kwargs):\n    return nn.Conv2d(3, kwargs['num_classes'], 1)\n"
        "def broken():\n    raise RuntimeError('two\\nlines')\n"
        "def text():\n    return 'a model'\n"
        "number = 3\n"
    )
    (tmp_path / "brokenmodule.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("mydetector", "brokenmodule"):
        sys.modules.pop(name, None)


def test_a_factory_in_the_current_folder_gets_the_number_of_classes_where_it_takes_it(my_package):
    def width(name, **arguments):
        return models.build(ModelSpec(name=name, num_classes=3, arguments=arguments)).out_channels

    assert width("mydetector:sized") == 12
    assert width("mydetector:sized", width=2) == 6
    assert width("mydetector:fixed") == 4
    assert width("mydetector:any_of") == 3
    assert width("torch.nn:Conv2d", in_channels=1, out_channels=9, kernel_size=1) == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuchmodule:make", "no module 'nosuchmodule'"),
        ("mydetector.sub:make", "no module 'mydetector.sub'"),
        (
            "brokenmodule:make",
            "importing it failed with ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("mydetector:missing", "no function 'missing'"),
        ("mydetector:number", "no function 'number'"),
        ("mydetector:", "package.module:function"),
        (":make", "package.module:function"),
        ("mydetector:broken", "RuntimeError: two lines"),
        ("mydetector:text", "returned a str"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_in_one_line(my_package, name, message):
    with pytest.raises(ModelError) as error:
        models.build(ModelSpec(name=name, num_classes=2))
    assert message in one_line(error)
    assert name in one_line(error)


def test_a_factory_takes_weights_and_resizes_its_head(my_package):
    torch.save(nn.Conv2d(3, 12, 1).state_dict(), "w.pt")
    model, spec = models.load_dense("mydetector:sized", {}, None, "auto", "w.pt")
    assert (spec.num_classes, model.out_channels) == (3, 12)
    model, _ = models.load_dense("mydetector:sized", {}, 2, "auto", "w.pt")
    assert model.out_channels == 8
    with pytest.raises(ModelError, match="2 keys differ"):
        models.load_dense("mydetector:fixed", {"width": 5}, 2, "auto", "w.pt")


# inputs


def test_resize_rule_is_the_detectors_own():
    assert models.resize_rule(small()) == models.Resize(64, 64)
    assert models.resize_rule(nn.Conv2d(1, 1, 1)) is None
    ssd = models.build(ModelSpec(name="ssdlite320_mobilenet_v3_large", num_classes=2))
    assert models.resize_rule(ssd) == models.Resize(fixed=(320, 320))
    ssd.transform.fixed_size = (320, 200)  # torchvision: width, height
    rule = models.resize_rule(ssd)
    image, _ = ssd.transform([torch.rand(3, 40, 50)])
    assert image.image_sizes == [rule.fixed]


def test_several_training_sizes_give_the_one_of_evaluation():
    model = models.build(
        ModelSpec(
            name="retinanet_resnet18_fpn",
            arguments={"min_size": [64, 80, 96], "max_size": 128},
            num_classes=2,
        )
    ).eval()
    rule = models.resize_rule(model)
    image, _ = model.transform([torch.rand(3, 100, 100)])
    assert rule == models.Resize(96, 128)
    assert image.image_sizes == [(96, 96)]


def test_detector_inputs_fit_the_call():
    model = small().eval()
    (images,) = models.detector_inputs((48, 64))
    assert [tuple(image.shape) for image in images] == [(3, 48, 64)]
    assert isinstance(model(images), list)


# the real one


@pytest.mark.skipif(not BCCD.exists(), reason="../shared/models is not here")
def test_the_bccd_detector_is_the_one_of_its_readme():
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    reference = RetinaNet(backbone, num_classes=4, min_size=192, max_size=256)
    reference.load_state_dict({k: v.float() for k, v in load_file(BCCD).items()})
    mine, spec = models.load_dense(
        "retinanet_resnet18_fpn", {"min_size": 192, "max_size": 256}, None, "auto", BCCD
    )
    assert (spec.num_classes, spec.norm) == (4, "batch")
    image = torch.rand(3, 192, 256)
    with torch.no_grad():
        expected, found = reference.eval()([image])[0], mine([image])[0]
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])
