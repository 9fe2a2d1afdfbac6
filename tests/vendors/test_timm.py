"""Tests of detectors on timm's backbones: the features that are read, and what is refused."""

import pytest
import torch
from torchvision.models.detection import FCOS, RetinaNet

from autoprune.config import ModelSpec
from autoprune.detectors import build, load_dense, save_state
from autoprune.errors import ModelError
from autoprune.export import load
from autoprune.export.folder import save_detector
from autoprune.graph import analyze, mask, prune
from autoprune.policy import Policy, hash_weights

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.meshgrid")

SMALL = {"fpn_channels": 32, "min_size": 64, "max_size": 96}
IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


def make(name, **arguments):
    return load_dense(f"timm:{name}", {**SMALL, **arguments}, num_classes=4)[0]


@pytest.mark.parametrize("name", ["resnet10t", "test_convnext", "mambaout_femto", "swin_s3_tiny_224"])
@torch.no_grad()
def test_the_pyramid_reads_strides_8_16_and_32(name):
    detector = make(name)
    own = {"strict_img_size": False} if "swin" in name else {}
    reference = timm.create_model(name, pretrained=False, features_only=True, **own).eval()
    reference.load_state_dict(detector.backbone.body.state_dict())
    maps = reference(IMAGE[None])
    channels_last = "mamba" in name or "swin" in name
    by_stride = {}
    for each in maps:
        each = each.permute(0, 3, 1, 2) if channels_last else each
        by_stride[96 // each.shape[3]] = each
    read = []
    handles = [
        block.register_forward_hook(lambda _m, inputs, _o: read.append(inputs[0]))
        for block in detector.backbone.fpn.inner_blocks
    ]
    pyramid = detector.backbone(IMAGE[None])
    for handle in handles:
        handle.remove()
    assert [tuple(each.shape) for each in pyramid.values()] == [
        (1, 32, 8, 12), (1, 32, 4, 6), (1, 32, 2, 3), (1, 32, 1, 2), (1, 32, 1, 1),
    ]  # fmt: skip
    for stride, each in zip((32, 16, 8), read, strict=True):  # the pyramid begins with the coarsest
        torch.testing.assert_close(each, by_stride[stride])


def test_images_of_any_size_are_taken_where_the_backbone_has_one_size():
    detector = make("swin_s3_tiny_224")
    with torch.no_grad():
        for size in ((64, 96), (70, 64)):
            detector([torch.rand(3, *size)])


@pytest.mark.parametrize(("kind", "expected"), [("retinanet", RetinaNet), ("fcos", FCOS)])
def test_both_kinds_of_detector_are_pruned_exactly_and_loaded(kind, expected, tmp_path):
    detector, spec = load_dense(
        "timm:resnet10t", {**SMALL, "detector": kind, "fpn_channels": 64}, num_classes=4
    )
    assert type(detector) is expected
    assert spec.name == "timm:resnet10t"
    graph = analyze(detector, ([IMAGE],))
    keep = {name: sorted(g.units[::2].ravel().tolist()) for name, g in graph.prunable.items()}
    assert len(keep) > 10
    pruned, masked = prune(detector, graph, keep), mask(detector, graph, keep)
    widths = {name: group.width for name, group in graph.prunable.items()}
    policy = Policy(spec, hash_weights(detector.state_dict()), "random", (64, 96), widths, keep)
    save_detector(tmp_path, pruned, policy)
    batch, _ = detector.transform([IMAGE])
    with torch.no_grad():
        got, expected, loaded = (
            model.head(list(model.backbone(batch.tensors).values()))
            for model in (pruned, masked, load(tmp_path))
        )
    for name, tensor in expected.items():
        assert (got[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max()
        assert torch.equal(loaded[name], got[name])
    loss = detector.train()(
        [IMAGE], [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}]
    )
    sum(loss.values()).backward()
    assert all(p.grad is not None for p in detector.parameters())


def test_weights_are_of_the_whole_detector(tmp_path):
    detector = make("resnet10t")
    save_state(detector, tmp_path / "mine.safetensors")
    again, spec = load_dense("timm:resnet10t", SMALL, weights=tmp_path / "mine.safetensors")
    assert spec.num_classes == 4  # as the weights have
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), detector.parameters(), strict=True))
    with pytest.raises(ModelError, match="keys differ"):
        load_dense("timm:resnet18", SMALL, weights=tmp_path / "mine.safetensors")


def test_fresh_weights_depend_on_the_seed_alone():
    spec = ModelSpec(name="timm:resnet10t", arguments={"backbone": "resnet10t", **SMALL}, num_classes=4)
    first, second, other = (build(spec, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["backbone.body.layer1.0.conv1.weight"], other["backbone.body.layer1.0.conv1.weight"]
    )


REFUSED = {
    "resnet81": "timm has no model 'resnet81'; did you mean timm:resnet",
    "resnet18.a1_in1k": "names pretrained weights, which are not fetched; give timm:resnet18",
    "vit_tiny_patch16_224": "feature maps at strides 16, 16, 16, and a pyramid is built on 8, 16, 32",
    "maxvit_nano_rw_256": "can't take an image of 64x96",
    "hf_hub:timm/resnet18": "timm has no model",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_that_cannot_serve_is_refused_in_one_line(name):
    with pytest.raises(ModelError) as error:
        make(name)
    assert REFUSED[name] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"detector": "yolo"}, "detector is 'yolo'; give retinanet or fcos"),
        ({"min_sise": 3}, "timm:resnet10t has no `min_sise`; valid: min_size"),
        ({"fpn_channels": 0}, "fpn_channels is 0; give a whole number from 1"),
        (
            {"detector": "fcos", "fpn_channels": 48},
            "fpn_channels is 48; the norms of FCOS need a multiple of 32",
        ),
        ({"anchor_sizes": [8, 16]}, "anchor_sizes needs 5 entries"),
        ({"anchor_sizes": 8}, "anchor_sizes needs 5 entries, one per level, not 8"),
        ({"fixed_size": 64}, "fixed_size is 64; give [width, height], whole numbers from 1"),
        ({"fixed_size": [64]}, "fixed_size is [64]; give [width, height]"),
        ({"fixed_size": [64, "x"]}, "fixed_size is [64, 'x']; give [width, height]"),
        ({"weights": "COCO_V1"}, "own settings"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(arguments, said):
    with pytest.raises(ModelError) as error:
        build(ModelSpec(name="timm:resnet10t", arguments={**SMALL, **arguments}, num_classes=4))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_backbone_of_one_size_is_taken_at_it():
    make("maxvit_nano_rw_256", fixed_size=[256, 256])


def test_another_backbone_among_the_arguments_is_refused():
    arguments = {"backbone": "resnet10t", **SMALL}
    with pytest.raises(ModelError) as error:
        build(ModelSpec(name="timm:resnet18", arguments=arguments, num_classes=4))
    assert "backbone is 'resnet10t', and the model is timm:resnet18; omit backbone" in str(error.value)
    assert "\n" not in str(error.value)
    build(ModelSpec(name="timm:resnet10t", arguments=arguments, num_classes=4))  # as a policy holds it
