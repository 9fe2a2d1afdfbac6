"""Detections and losses against the vendor's own model, processor and loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from autoprune.detectors import load_dense
from autoprune.errors import ModelError
from autoprune.runtimes.onnx import write_raw_heads
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.runtimes.sessions import open_session
from autoprune.runtimes.torch_export import write_program
from autoprune.vendors.transformers_detector import Grid
from autoprune.vendors.transformers_families import FAMILIES

from .raw_heads_checks import check_decoding, check_file
from .transformers_models import processor_of, write_folder

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"
SIDES = {family: 128 if family == "deformable_detr" else 64 for family in FAMILIES}


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """A family, the vendor's model, and the detector that is made of the folder it was saved to."""
    family: str = request.param
    folder = tmp_path_factory.mktemp(family)
    vendor = write_folder(folder, family)
    detector, _ = load_dense(f"transformers:{folder}", weights=folder)
    return family, vendor, detector


def pictures(count: int) -> list[Tensor]:
    """8-bit images: of BCCD, in half their size, where it is there, else noise of several sizes."""
    if BCCD.is_dir():
        return [image[:, ::2, ::2].contiguous() for image in bccd(count)]
    generator = torch.Generator().manual_seed(0)
    sizes = [(80 + 7 * n, 120 - 5 * n) for n in range(count)]
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def bccd(count: int) -> list[Tensor]:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    files = sorted((BCCD / "images").rglob("*.jpg"))[:count]
    assert len(files) == count
    return [pil_to_tensor(Image.open(file).convert("RGB")) for file in files]


def test_detections_are_those_of_the_vendors_predictor(pair: tuple[str, Any, Any]) -> None:
    family, vendor, detector = pair
    processor = processor_of(family)
    vendor.eval()
    for image in pictures(16):
        inputs = processor(images=[image], return_tensors="pt")
        if family == "yolos":
            inputs.pop("pixel_mask")  # the model takes none
        height, width = image.shape[-2:]
        with torch.inference_mode():
            outputs = vendor(**inputs)
            (wanted,) = processor.post_process_object_detection(
                outputs, threshold=0.0, target_sizes=[(height, width)]
            )
            (detections,) = detector.eval()([image.float() / 255])
        order = wanted["scores"].sort(descending=True, stable=True).indices
        inside = wanted["boxes"].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        assert len(detections["boxes"]) == len(order) > 0
        assert float(detections["scores"].std()) > 1e-3, "the scores tell nothing apart"
        torch.testing.assert_close(detections["scores"], wanted["scores"][order], rtol=0, atol=1e-5)
        apart = torch.ones(len(order), dtype=torch.bool)  # of equal scores, either may be first
        apart[1:] &= detections["scores"].diff().abs() > 1e-5
        apart[:-1] &= detections["scores"].diff().abs() > 1e-5
        assert apart.any()
        torch.testing.assert_close(detections["boxes"][apart], inside[order][apart], rtol=0, atol=0.01)
        assert (detections["labels"][apart] == wanted["labels"][order][apart] + 1).all()


@pytest.mark.parametrize("empty", [False, True])
def test_the_loss_is_the_vendors_own(pair: tuple[str, Any, Any], empty: bool) -> None:
    family, vendor, detector = pair
    side = SIDES[family]
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator) for _ in range(2)
    ]
    boxes = [torch.tensor([[4.0, 6, 30, 40], [20, 20, 60, 50]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1, 3]), torch.zeros(0, dtype=torch.int64)]
    if empty:
        boxes[0], labels[0] = boxes[1], labels[1]
    annotations = [
        {
            "image_id": number,
            "annotations": [
                {
                    "category_id": int(label) - 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
                for (x1, y1, x2, y2), label in zip(own.tolist(), marks, strict=True)
            ],
        }
        for number, (own, marks) in enumerate(zip(boxes, labels, strict=True))
    ]
    inputs = processor_of(family)(images=images, annotations=annotations, return_tensors="pt")
    targets = [{"boxes": own, "labels": marks} for own, marks in zip(boxes, labels, strict=True)]
    vendor.load_state_dict(detector.unwrap().state_dict())
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    torch.manual_seed(3)  # some add noise to the boxes for their loss, and drop out
    wanted = vendor.train()(pixel_values=inputs["pixel_values"], labels=inputs["labels"]).loss.item()
    torch.manual_seed(3)
    losses = detector.train()([image.float() / 255 for image in images], targets)
    assert abs(sum(loss.item() for loss in losses.values()) - wanted) <= 1e-5 * max(1.0, wanted)
    detector.load_state_dict(state)
    detector.eval()


@pytest.mark.parametrize("family", ["detr", "deformable_detr"])
def test_boxes_are_relative_to_an_image_without_its_padding(family: str, tmp_path: Path) -> None:
    write_folder(tmp_path, family)
    detector, _ = load_dense(f"transformers:{tmp_path}", weights=tmp_path)
    small, wide = torch.rand(3, 128, 128), torch.rand(3, 128, 160)
    with torch.inference_mode():
        batch, _ = detector.transform([small, wide])
        raw = detector.raw(batch)
        by_image = detector.detections(raw, batch)
    heights_and_widths = torch.tensor(batch.image_sizes)
    assert batch.tensors.shape[-1] > batch.image_sizes[0][1]
    for detections, (height, width), boxes in zip(
        by_image, heights_and_widths, raw["pred_boxes"], strict=True
    ):
        largest = (boxes[:, 2] * width).max(), (boxes[:, 3] * height).max()
        sizes = detections["boxes"][:, 2:] - detections["boxes"][:, :2]
        torch.testing.assert_close(sizes.amax(0), torch.stack(largest))
    boxes = torch.tensor([[0.0, 0, 64, 128]])
    received: list[Any] = []
    detector.unwrap().register_forward_pre_hook(lambda _, __, more: received.append(more), with_kwargs=True)
    targets = [{"boxes": boxes, "labels": torch.tensor([1])}] * 2
    detector.train()([small, wide], targets)
    first, second = received[0]["labels"]
    torch.testing.assert_close(first["boxes"], torch.tensor([[0.25, 0.5, 0.5, 1.0]]))
    torch.testing.assert_close(second["boxes"], torch.tensor([[0.2, 0.5, 0.4, 1.0]]))
    assert received[0]["pixel_mask"][0, 0].sum() == batch.image_sizes[0][1]
    assert received[0]["pixel_mask"][1].all()


def test_training_goes_on_after_a_pass_without_gradients(tmp_path: Path) -> None:
    write_folder(tmp_path, "rt_detr")
    detector, _ = load_dense(f"transformers:{tmp_path}", weights=tmp_path)
    with torch.inference_mode():  # the model keeps the positions of this pass for the next
        detector([torch.rand(3, 64, 64)])
    target = {"boxes": torch.tensor([[4.0, 6, 30, 40]]), "labels": torch.tensor([1])}
    detector.train()([torch.rand(3, 64, 64)], [target])["loss"].backward()


def test_sizes_that_a_detector_can_not_run_at_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "rt_detr")
    for size, message in (
        (72, "72x72 pixels can't be divided by the detector's stride of 32"),
        (32, "queries"),
    ):
        detector, _ = load_dense(f"transformers:{tmp_path}", {"size": size}, weights=tmp_path)
        if size == 32:
            detector.grid = Grid(32, (16, 32), 300)
        with pytest.raises(ModelError, match=message):
            detector([torch.rand(3, 64, 64)])


@pytest.fixture(scope="module")
def stretched(pair: tuple[str, Any, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """The family and its detector, set to stretch images to a square."""
    family = pair[0]
    folder = tmp_path_factory.mktemp(family)
    write_folder(folder, family)
    return family, load_dense(f"transformers:{folder}", {"size": SIDES[family]}, weights=folder)[0].eval()


def test_raw_heads_are_decoded_to_its_detections(stretched: tuple[str, Any]) -> None:
    family, detector = stretched
    images = [image.float() / 255 for image in pictures(4)]
    raw = check_decoding(detector, images, (32, 32))
    assert (raw.frame.height, raw.frame.width) == (SIDES[family],) * 2


def test_files_of_raw_heads_compute_the_same(
    stretched: tuple[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    family, detector = stretched
    raw, image = RawHeads(detector, (64, 64)), pictures(1)[0].float() / 255
    if family == "rf_detr":
        with pytest.raises(ModelError, match=r"bicubic resizing .* raw heads in pt2 have it"):
            write_raw_heads(raw, tmp_path / "raw.onnx")
    else:
        write_raw_heads(raw, tmp_path / "raw.onnx")
        check_file(raw, open_session(tmp_path / "raw.onnx", "onnxruntime", "cpu", 1), image)
    if family in ("rf_detr", "rt_detr", "rt_detr_v2"):
        write_program(raw, tmp_path / "raw.pt2")
        capfd.readouterr()
        check_file(raw, open_session(tmp_path / "raw.pt2", "torch", "cpu", 1), image)
        assert "did not appear in the graph" not in capfd.readouterr().err


def test_raw_heads_are_refused_where_the_model_must_know_the_padding(pair: tuple[str, Any, Any]) -> None:
    _, vendor, detector = pair
    if detector.transform.fixed_size is not None:
        assert RawHeads(detector, (64, 64)).frame.stretch
        return
    with pytest.raises(
        ModelError, match=rf"{type(vendor).__name__} keeps the ratio .* whole with --format onnx"
    ):
        RawHeads(detector, (64, 64))
