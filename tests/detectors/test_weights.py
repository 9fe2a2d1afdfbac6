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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from autoprune import detectors, progress
from autoprune.config import ModelSpec, make_config
from autoprune.detectors import weights as weight_files
from autoprune.errors import ModelError, RunError

from .conftest import SMALL, assert_same, features, one_line, shake, small

BCCD = Path(__file__).parents[2] / "shared/models/retinanet_resnet18_bccd.safetensors"


def test_norm_is_read_off_the_weights(tmp_path):
    for norm in ("batch", "frozen"):
        path = tmp_path / f"{norm}.safetensors"
        detectors.save_state(shake(small(norm=norm)), path)
        _, spec = detectors.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", path)
        assert spec.norm == norm
        other = "frozen" if norm == "batch" else "batch"
        converted, spec = detectors.load_dense("retinanet_resnet18_fpn", SMALL, 4, other, path)
        assert spec.norm == other
        assert_same(features(converted), features(shake(small(norm=norm))))


@pytest.mark.parametrize(("norm", "moves"), [("freeze", False), ("train", True)])
def test_frozen_weights_train_their_norms_or_not(tmp_path, norm, moves):
    """Of weights with frozen norms: whether statistics move, and which tensors get gradients."""
    path = tmp_path / "frozen.safetensors"
    detectors.save_state(shake(small(norm="frozen")), path)
    kind = make_config(norm=norm).norm_kind
    model, _ = detectors.load_dense("retinanet_resnet18_fpn", SMALL, 4, kind, path)
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


def test_weights_come_back_from_every_kind_of_file(tmp_path):
    model = shake(small())
    state = model.state_dict()
    files = {
        "a.safetensors": partial(detectors.save_state, model),
        "b.pt": partial(torch.save, state),
        "c.pth": partial(torch.save, {"model": state, "epoch": 3}),
        "d.pt": partial(torch.save, {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
        "e.pt": partial(torch.save, {"model_state_dict": state, "optimizer": {"lr": 0.1}}),
    }
    for name, save in files.items():
        save(tmp_path / name)
        loaded, spec = detectors.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", tmp_path / name)
        assert all(torch.equal(loaded.state_dict()[k], v) for k, v in state.items()), name
        assert spec == ModelSpec(name="retinanet_resnet18_fpn", arguments=SMALL, num_classes=4)
        assert not loaded.training


def test_float16_on_disk_is_float32_in_memory_and_half_the_file(tmp_path):
    model = shake(small())
    detectors.save_state(model, tmp_path / "whole.safetensors", metadata={"made": "by a test"})
    detectors.save_state(model, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.52 * sizes[0]
    for name, tensor in detectors.load_state(tmp_path / "half.safetensors").items():
        original = model.state_dict()[name]
        assert tensor.dtype == original.dtype
        assert torch.equal(
            tensor, original.to(torch.float16).to(original.dtype) if tensor.is_floating_point() else original
        )


def test_weights_on_a_full_disk_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    detectors.save_state({"a": torch.ones(2)}, path)

    def full(tensors, file, metadata):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("autoprune.checkpoints.write.save_file", full)
    with pytest.raises(RunError, match="disk is full"):
        detectors.save_state({"a": torch.zeros(2)}, path)
    assert detectors.load_state(path)["a"].sum() == 2
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
    torch.save({1: torch.ones(1)}, tmp_path / "numbered.pt")
    torch.save({"a": torch.ones(1, device="meta")}, tmp_path / "meta.pt")
    messages = {
        "none.pt": "No such file",
        "text.pt": "no weights that can be read safely",
        "text.safetensors": "no weights that can be read safely",
        "empty.pt": "no weights that can be read safely",
        "evil.pt": "no weights that can be read safely",
        "evil2.pt": "no weights that can be read safely",
        "list.pt": "no state dict",
        "mixed.pt": "`b` is not a tensor",
        "numbered.pt": "`1` is not a dense tensor with a name",
        "meta.pt": "`a` is not a dense tensor",
    }
    for name, message in messages.items():
        with pytest.raises(ModelError) as error:
            detectors.load_state(tmp_path / name)
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
    detectors.save_state(source, tmp_path / "w.safetensors")
    out = io.StringIO()
    with progress.show(Console(file=out, width=400)):
        loaded, spec = detectors.load_dense(name, SMALL, 3, "auto", tmp_path / "w.safetensors")
    assert spec.num_classes == 3
    assert head in out.getvalue()
    fresh = small(classes=3, name=name).state_dict()
    for key, tensor in loaded.state_dict().items():
        expected = fresh[key] if key.startswith(head) else source.state_dict()[key]
        assert torch.equal(tensor, expected), key


def test_two_stage_heads_are_resized_too(tmp_path):
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    source = detectors.build(ModelSpec(name=name, num_classes=5))
    detectors.save_state(source, tmp_path / "w.safetensors")
    loaded, _ = detectors.load_dense(name, {}, 3, "auto", tmp_path / "w.safetensors")
    same = {k for k, v in loaded.state_dict().items() if torch.equal(v, source.state_dict()[k])}
    predictor = {k for k in loaded.state_dict() if "box_predictor" in k}
    assert same == loaded.state_dict().keys() - predictor


def test_the_number_of_classes_is_read_off_the_weights(tmp_path):
    for name in ("retinanet_resnet18_fpn", "fcos_resnet18_fpn"):
        detectors.save_state(small(classes=7, name=name), tmp_path / "w.safetensors")
        _, spec = detectors.load_dense(name, SMALL, None, "auto", tmp_path / "w.safetensors")
        assert spec.num_classes == 7


def test_weights_of_another_architecture_name_the_first_five_keys_of_each_kind(tmp_path):
    state = small().state_dict()
    state["backbone.body.conv1.weight"] = torch.ones(2, 2)
    del state["backbone.body.layer1.0.conv1.weight"]
    detectors.save_state(state, tmp_path / "near.safetensors")
    detectors.save_state(small(name="fcos_resnet18_fpn"), tmp_path / "far.safetensors")
    with pytest.raises(ModelError) as error:
        detectors.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", tmp_path / "near.safetensors")
    text = one_line(error)
    assert "2 keys differ" in text
    assert "backbone.body.layer1.0.conv1.weight is missing" in text
    assert "backbone.body.conv1.weight is [2, 2], the model's [64, 3, 7, 7]" in text
    with pytest.raises(ModelError) as error:
        detectors.load_dense("retinanet_resnet18_fpn", SMALL, 4, "auto", tmp_path / "far.safetensors")
    mine, other = set(small().state_dict()), set(small(name="fcos_resnet18_fpn").state_dict())
    named = [key for key in mine ^ other if f"{key} is " in one_line(error)]
    assert len(named) == 10  # five that are missing, and five that are not in the model
    assert len(set(named) - other) == len(set(named) - mine) == 5
    assert "their keys are those of fcos_resnet18_fpn, so give --model" in one_line(error)


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
    model = shake(detectors.build(ModelSpec(name="retinanet_resnet50_fpn", num_classes=91, norm="frozen")))
    model.backbone.body.layer3[2].bn1.running_var.fill_(1e-5)  # here an epsilon of 0 or of 1e-5 matters
    path = hub / Path(entry.url).name
    torch.save(model.state_dict(), path)
    reference = features(detection.retinanet_resnet50_fpn(weights=entry, progress=False))
    for given in (str(entry), "DEFAULT", path):
        mine, spec = detectors.load_dense("retinanet_resnet50_fpn", {}, None, "auto", given)
        assert (spec.norm, spec.num_classes) == ("frozen", 91)
        assert_same(features(mine), reference)
    path.rename(hub / "mine.pth")  # not torchvision's file any more, so the epsilon is the builder's
    mine, _ = detectors.load_dense("retinanet_resnet50_fpn", {}, None, "auto", hub / "mine.pth")
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
        detectors.load_dense("retinanet_resnet50_fpn", {}, 91, "auto", "COCO_V1")
    assert "retinanet_resnet50_fpn_coco" in one_line(error)
    assert "--weights" in one_line(error)
    for model, name in (
        ("retinanet_resnet50_fpn", "COCO_V9"),
        ("retinanet_resnet50_fpn", "RetinaNet_ResNet50_FPN_Weights.V9"),
        ("retinanet_resnet50_fpn", "nonsense.words"),
        ("retinanet_resnet18_fpn", "DEFAULT"),
    ):
        with pytest.raises(ModelError) as error:
            detectors.load_dense(model, {}, 91, "auto", name)
        assert f"no file {name}" in one_line(error)


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
    mine, spec = detectors.load_dense(
        "retinanet_resnet18_fpn", {"min_size": 192, "max_size": 256}, None, "auto", BCCD
    )
    assert (spec.num_classes, spec.norm) == (4, "batch")
    image = torch.rand(3, 192, 256)
    with torch.no_grad():
        expected, detections = reference.eval()([image])[0], mine([image])[0]
    for key in expected:
        torch.testing.assert_close(detections[key], expected[key])
