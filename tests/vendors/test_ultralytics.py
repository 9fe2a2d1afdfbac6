"""The contract of a vendor: descriptions, arguments, and pruned detectors as folders."""

import io

import pytest
import torch
from rich.console import Console
from torch.utils._pytree import tree_leaves

import autoprune
from autoprune import progress
from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs, load_dense
from autoprune.errors import ModelError
from autoprune.export import largest_difference, save_detector
from autoprune.graph import analyze, prune
from autoprune.graph.surgery import mask
from autoprune.policy import Policy, hash_weights
from autoprune.vendors import vendor_of
from tests.vendors.ultralytics_models import make_lively

ultralytics = pytest.importorskip("ultralytics")


def make(kind, imgsz=64, classes=3, **changes):
    vendor, source = vendor_of(f"ultralytics:{kind}.yaml")
    description = vendor.describe(source, {"imgsz": imgsz, "conf": 0.05, **changes})
    spec = ModelSpec(name=f"ultralytics:{source}", arguments=description.arguments, num_classes=classes + 1)
    return make_lively(build(spec)), spec


def half(graph):
    return {
        name: sorted(group.units[: max(1, len(group.units) // 2)].ravel().tolist())
        for name, group in graph.prunable.items()
    }


@pytest.mark.parametrize(
    "kind",
    [
        "yolov8n",
        "yolov9t",
        "yolo11n",
        pytest.param("yolo26n", marks=pytest.mark.slow),
        "yolo11n-seg",
        "yolo11n-pose",
        "yolo11n-obb",
    ],
)
def test_a_pruned_detector_is_the_masked_one_and_survives_its_folder(kind, tmp_path):
    detector, spec = make(kind)
    graph = analyze(detector, detector_inputs((64, 64)))
    keep = half(graph)
    pruned, masked = (make_it(detector, graph, keep).double() for make_it in (prune, mask))
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = [tree_leaves(model.vendor(image)[0]) for model in (pruned, masked)]  # with masks, keypoints
    for first, second in zip(*outputs, strict=True):
        assert first.shape == second.shape
        assert (first - second).abs().max() <= 1e-9 * second.abs().max()
    policy = Policy(
        spec, hash_weights(detector.state_dict()), "l2", (64, 64), {n: graph.groups[n].width for n in keep},
        {n: tuple(k) for n, k in keep.items()}, labels={1: "a", 2: "b", 3: "c"},
    )  # fmt: skip
    pruned = prune(detector, graph, keep)
    save_detector(tmp_path, pruned, policy)
    read = autoprune.load(tmp_path)
    assert largest_difference(pruned, read, (64, 64)) == 0
    assert read.unwrap().names == {0: "a", 1: "b", 2: "c"}
    assert graph.gflops({n: len(k) for n, k in keep.items()}) < 0.5 * graph.gflops()


@pytest.mark.slow
def test_gflops_are_those_that_ultralytics_deploys():
    """Its YAML files and its `info` count 2 FLOPs a multiply-add, of the fused network; here one counts."""
    for kind, published in {"yolov8n": 8.7, "yolo11n": 6.5, "yolo26n": 5.4}.items():
        detector, _ = make(kind, classes=80)
        graph = analyze(detector, detector_inputs((64, 64)))  # a hundredth of the pixels
        assert graph.gflops() * 100 * 2 == pytest.approx(published, rel=0.02)


def test_nothing_but_the_arguments_is_needed_again():
    vendor, source = vendor_of("ultralytics:yolo11n.yaml")
    first = vendor.describe(source, {"imgsz": 96})
    again = vendor.describe("gone.pt", first.arguments)
    assert again == first
    assert again.num_classes == 81


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"imgsz": 100}, "imgsz 100 is no multiple of 32, the stride of this model; give 128"),
        ({"imgsz": 640.0}, "imgsz must be a whole number from 32"),
        ({"imgsz": 0}, "imgsz must be"),
        ({"conf": 2}, "conf must be a number from 0 to 1"),
        ({"iuo": 0.5}, "has no `iuo`; did you mean iou"),
        ({"nms": "no"}, "nms must be true or false"),
        ({"yaml": 3}, "yaml must be the architecture"),
        ({"names": "abc"}, "names must be a list"),
    ],
)
def test_wrong_arguments_are_named(arguments, problem):
    vendor, source = vendor_of("ultralytics:yolo11n.yaml")
    with pytest.raises(ModelError, match=problem):
        vendor.build(vendor.describe(source, arguments).arguments, 4)


@pytest.mark.parametrize(
    ("source", "arguments", "said"),
    [
        ("yolo11n.yaml", {"nms": False}, "nms false does nothing, as yolo11n.yaml has no second head"),
        ("rtdetr-l.yaml", {"nms": False}, "nms false does nothing"),
        ("rtdetr-l.yaml", {"iou": 0.5}, "iou does nothing"),
        ("yolo26n.yaml", {"nms": False, "iou": 0.5}, "iou does nothing"),
        ("yolo26n.yaml", {"nms": False}, None),
        ("yolov10n.yaml", {"nms": False}, None),
        ("yolo11n.yaml", {"iou": 0.5}, None),
    ],
)
def test_a_setting_that_does_nothing_is_said(source, arguments, said):
    out = io.StringIO()
    with progress.show(Console(file=out, width=200)):
        vendor_of(f"ultralytics:{source}")[0].describe(source, arguments)
    assert (said is None) == (out.getvalue() == "")
    assert (said or "") in out.getvalue()


def test_an_architecture_beside_the_name_of_another_is_refused():
    vendor, source = vendor_of("ultralytics:yolo11n.yaml")
    stored = vendor.describe("yolov8n.yaml", {"imgsz": 96}).arguments
    for yaml, said in ((stored["yaml"], "yaml is yolov8n.yaml"), ({"nc": 3}, "yaml is of no file")):
        with pytest.raises(ModelError, match=f"{said}, and the model is named yolo11n.yaml; omit yaml"):
            vendor.describe(source, {"yaml": yaml})
    for name in ("yolov8n.yaml", "gone.pt"):  # as policies hold them
        assert vendor.describe(name, stored).arguments == stored


@pytest.mark.parametrize("classes", [2, 64, 90, 101, 150])
def test_weights_say_their_classes_also_where_towers_are_no_wider(classes, tmp_path):
    """Ultralytics makes the towers of its smallest models as wide as there are classes, from 64 to 100."""
    vendor, source = vendor_of("ultralytics:yolo11n.yaml")
    made = vendor.build(vendor.describe(source, {}).arguments, classes + 1)
    torch.save(made.state_dict(), tmp_path / "x.pt")
    detector, spec = load_dense("ultralytics:yolo11n.yaml", weights=tmp_path / "x.pt")
    assert spec.num_classes == classes + 1
    assert all(torch.equal(made.state_dict()[name], value) for name, value in detector.state_dict().items())


@pytest.mark.slow
def test_the_head_without_suppression_can_be_the_one_that_counts():
    with_nms, without = (
        analyze(make("yolo26n", nms=nms)[0], detector_inputs((64, 64))) for nms in (True, False)
    )
    assert "vendor.model.23.cv2.0.0.conv" in with_nms.prunable
    assert "vendor.model.23.one2one_cv2.0.0.conv" in without.prunable
    assert with_nms.gflops() == pytest.approx(without.gflops())
    assert "training mode only" in with_nms.groups["vendor.model.23.one2one_cv2.0.0.conv"].reason


def test_losses_under_autocast_compare_boxes_in_float32(monkeypatch):
    """Ultralytics would decode in the type of its outputs: bfloat16 has no fractions of a cell beyond 128."""
    from ultralytics.utils.loss import v8DetectionLoss

    decode, used = v8DetectionLoss.bbox_decode, []

    def spy(self, anchors, distribution):
        used.append((anchors, decode(self, anchors, distribution)))
        return used[-1][1]

    monkeypatch.setattr(v8DetectionLoss, "bbox_decode", spy)
    model, _ = make("yolo11n")
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 32.0]]), "labels": torch.tensor([1])}]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()([torch.rand(3, 64, 64)], targets)
    ((anchors, boxes),) = used
    assert (anchors.dtype, boxes.dtype) == (torch.float32, torch.float32)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
