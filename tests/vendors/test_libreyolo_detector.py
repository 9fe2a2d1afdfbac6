"""Detections and losses against LibreYOLO's own predictor and criteria, and exact pruning."""

import logging
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torchvision.ops import box_convert

from autoprune.detectors import load_dense
from autoprune.export import load
from autoprune.export.folder import save_detector
from autoprune.graph import analyze, mask, prune
from autoprune.policy import Policy, hash_weights
from autoprune.runtimes.decode_raw_heads import Detections
from autoprune.runtimes.onnx import write_raw_heads, write_whole
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.runtimes.sessions import open_session
from autoprune.vendors.libreyolo import FAMILIES
from autoprune.vendors.libreyolo_detector import Letterbox
from tests.vendors.libreyolo_models import KINDS, as_tensor, pictures, wrapper
from tests.vendors.raw_heads_checks import check_decoding, check_file, check_same, documented

QUICK = ("yolox", "rtmdet")
"""Kinds whose channel groups are there within seconds."""


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.getLogger("libreyolo").setLevel(logging.ERROR)


@cache
def detector_of(family, path=None):
    """LibreYOLO's object that its own loader made of a checkpoint, and our detector of the same file."""
    size, side = KINDS[family]
    theirs = FAMILIES[family](str(path), size=size, nb_classes=3, device="cpu")
    arguments = {"imgsz": side, "score_thresh": 0.05}
    if family in ("yolox", "yolo9", "rtmdet"):  # the others suppress no boxes
        arguments["nms_thresh"] = 0.5
    return theirs, *load_dense(f"libreyolo:{path}", arguments, weights=path)


@pytest.fixture(params=KINDS)
def pair(request, made_once):
    folder = made_once("libreyolo", lambda folder: folder.mkdir())
    path = folder / f"{request.param}.pt"
    if not path.exists():
        wrapper(request.param).save(str(path))
    return request.param, *detector_of(request.param, path)


@pytest.mark.parametrize("resized", [False, True])
@torch.no_grad()
def test_detections_are_those_of_its_predictor(pair, resized):
    """Whole on images of the network's size; on others with its own pixels, which are almost ours."""
    family, theirs, detector, _ = pair
    side, scores_seen = KINDS[family][1], []
    for image in pictures(16 if resized else 6):
        image = image if resized else image.resize((side, side))
        boxes_of_theirs = theirs.predict(image, conf=0.05, iou=0.5, imgsz=side).boxes
        if resized:
            got = with_pixels(detector, image, theirs._preprocess(image, input_size=side)[0])
        else:
            (got,) = detector([as_tensor(image)])
        limits = torch.tensor([*image.size, *image.size])
        # its queries find boxes beyond the image, too
        boxes = boxes_of_theirs.xyxy.clamp(min=0).minimum(limits)
        clear = 0.05 + 1e-3  # below, one of them may have left a detection out
        assert (got["scores"] > clear).sum() <= len(boxes_of_theirs.conf)
        assert (boxes_of_theirs.conf > clear).sum() <= len(got["scores"])
        assert got["scores"].tolist() == sorted(got["scores"], reverse=True)
        apart = (boxes[:, None] - got["boxes"]).abs().amax(2) / 0.5
        apart = apart.maximum((boxes_of_theirs.conf[:, None] - got["scores"]).abs() / 1e-3)
        apart[boxes_of_theirs.cls[:, None] + 1 != got["labels"]] = torch.inf
        assert (apart[boxes_of_theirs.conf > clear] <= 1).any(1).all()
        assert (apart[:, got["scores"] > clear] <= 1).any(0).all()
        scores_seen += [round(float(score), 2) for score in boxes_of_theirs.conf]
    assert len(scores_seen) > 20
    assert len({*scores_seen}) > 5


@pytest.mark.parametrize("size", [(147, 74), (74, 147), (94, 60), (48, 64)])
def test_an_image_that_was_resized_before_is_not_resized_again(size):
    """As data is before it is kept; LibreYOLO's rounding leaves the longer side of some a pixel short."""
    transform = Letterbox(96, 96, size_divisible=32, placement="corner", antialias=False)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    once, _ = transform([image / 255])
    kept, _ = transform([transform.resize_pixels(image) / 255])
    assert kept.image_sizes == once.image_sizes
    torch.testing.assert_close(kept.tensors, once.tensors, rtol=0, atol=1e-6)


def with_pixels(detector, image, pixels):
    """Detections where the resized image has LibreYOLO's own pixels, in its order of colors."""
    batch, _ = detector.transform([as_tensor(image)])
    ours = detector._images(batch)
    assert ours.shape == pixels.shape
    step = 1 / 255 / min(detector.transform.image_std)
    assert (ours - pixels).abs().max() <= 1.01 * step
    assert (ours - pixels).abs().mean() <= 0.3 * step
    batch.tensors = detector._images(type("Batch", (), {"tensors": pixels}))  # in our order
    boxes_of_theirs = detector.detections(detector.raw(batch), batch)
    (height, width) = image.size[::-1]
    return detector.transform.postprocess(boxes_of_theirs, batch.image_sizes, [(height, width)])[0]


TARGETS = [
    {"boxes": torch.tensor([[8.0, 10, 60, 50], [30, 30, 70, 76]]), "labels": torch.tensor([1, 3])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    {"boxes": torch.tensor([[0.0, 0, 90, 80]]), "labels": torch.tensor([2])},
]


def loss_of(family, network, batch, side):
    """What LibreYOLO's training minimizes, by its own model, criterion and form of the targets."""
    rows = torch.zeros(len(TARGETS), 4, 5)
    for row, target in zip(rows, TARGETS, strict=True):
        boxes = target["boxes"]
        boxes = boxes / side if family in ("yolo9", "rtdetr") else box_convert(boxes, "xyxy", "cxcywh")
        row[: len(boxes)] = torch.cat((target["labels"][:, None] - 1, boxes), 1)
    if family in ("yolox", "yolo9"):
        return network(batch, targets=rows)["total_loss"]
    if family == "rtmdet":
        from libreyolo.models.rtmdet.loss import RTMDetLoss

        boxes, labels = [each["boxes"] for each in TARGETS], [each["labels"] - 1 for each in TARGETS]
        return RTMDetLoss(num_classes=3, strides=(8, 16, 32))(*network(batch), boxes, labels)["total_loss"]
    queries = [
        {"labels": each["labels"] - 1, "boxes": box_convert(each["boxes"] / side, "xyxy", "cxcywh")}
        for each in TARGETS
    ]
    outputs = network(batch, targets=queries)
    if family == "rtdetr":
        from libreyolo.models.rtdetr.loss import RTDETRLoss

        return RTDETRLoss(num_classes=3)(outputs, queries)["total_loss"]
    if family == "dfine":
        from libreyolo.models.dfine.trainer import DFINETrainer as Trainer
    else:
        from libreyolo.models.deim.trainer import DEIMTrainer as Trainer
    settings = SimpleNamespace(config=SimpleNamespace(num_classes=3), device="cpu", _is_segment=lambda: False)
    return sum(Trainer.build_criterion(settings)(outputs, queries).values())


@torch.no_grad()
def test_the_loss_is_that_of_its_training(pair):
    family, theirs, detector, _ = pair
    side = KINDS[family][1]
    images = [image.resize((side, side)) for image in pictures(3)]  # its own resizing changes none
    batch = torch.cat([theirs._preprocess(image, input_size=side)[0] for image in images])
    theirs.model.train()
    detector.train()
    torch.manual_seed(3)  # of the noise in boxes that queries are trained to remove
    expected = float(loss_of(family, theirs.model, batch, side))
    torch.manual_seed(3)
    got = float(sum(detector([as_tensor(image) for image in images], TARGETS).values()))
    theirs.model.eval()
    detector.eval()
    assert expected > 0.1
    assert got == pytest.approx(expected, rel=1e-5)


def leaves(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [leaf for value in values for leaf in leaves(value)]


@pytest.mark.parametrize(
    "pair",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS],
    indirect=True,
)
def test_a_pruned_network_equals_the_masked_one_and_needs_no_checkpoint(pair, tmp_path, monkeypatch):
    family, _, detector, spec = pair
    images = [as_tensor(image) for image in pictures(2)]
    graph = analyze(detector, (images[:1],))
    keep = {name: group.units[:: (len(group.units) > 1 and 2) or 1] for name, group in graph.prunable.items()}
    keep = {name: sorted(units.ravel().tolist()) for name, units in keep.items()}
    assert len(keep) > 10
    pruned = prune(detector, graph, keep)
    batch = detector.transform(images)[0]
    with torch.no_grad():
        before = leaves(pruned.raw(batch))

    widths = {name: group.width for name, group in graph.prunable.items()}
    side = KINDS[family][1]
    policy = Policy(spec, hash_weights(detector.state_dict()), "random", (side, side), widths, keep)
    save_detector(tmp_path, pruned, policy)
    monkeypatch.chdir(tmp_path)  # where no checkpoint is
    with torch.no_grad():
        after = leaves(load(tmp_path).raw(batch))
    assert all(map(torch.equal, after, before))

    batch.tensors = batch.tensors.double()  # in float32, the queries of pruned and masked may be others
    with torch.no_grad():
        got, expected = (leaves(model.double().raw(batch)) for model in (pruned, mask(detector, graph, keep)))
    compared = [(a, b) for a, b in zip(got, expected, strict=True) if a.shape == b.shape]
    assert len(compared) >= 2
    for a, b in compared:
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


def test_raw_heads_are_decoded_to_its_detections(pair):
    """The input is the square of LibreYOLO's, whatever was asked for."""
    family, _, detector, _ = pair
    side = KINDS[family][1]
    raw = check_decoding(detector, [as_tensor(image) for image in pictures(3)], (32, 64))
    assert (raw.frame.height, raw.frame.width) == (side, side)


@torch.no_grad()
def test_the_documented_program_finds_what_its_predictor_does_in_raw_heads(tmp_path):
    wrapper("rtmdet").save(str(tmp_path / "x.pt"))
    theirs, detector, _ = detector_of("rtmdet", tmp_path / "x.pt")
    side, image = KINDS["rtmdet"][1], pictures(6)[5].resize((230, 250))
    boxes, scores, labels = documented(detector, (side, side), image, tmp_path)
    got = theirs.predict(image, conf=0.05, iou=0.5, imgsz=side).boxes
    limits = torch.tensor([*image.size, *image.size])
    expected = (got.xyxy.clamp(min=0).minimum(limits).numpy(), got.conf.numpy(), got.cls.numpy() + 1)
    assert len(scores) > 2
    check_same(Detections(*expected), Detections(boxes, scores, labels), 0.5, 1e-3)


@pytest.mark.parametrize(
    "pair",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS],
    indirect=True,
)
def test_a_file_of_raw_heads_computes_the_same(pair, tmp_path):
    raw = RawHeads(pair[2], (96, 96))
    write_raw_heads(raw, tmp_path / "raw.onnx")
    check_file(raw, open_session(tmp_path / "raw.onnx", "onnxruntime", "cpu", 1), as_tensor(pictures(1)[0]))


@pytest.mark.parametrize("pair", KINDS, indirect=True)
@torch.inference_mode()
def test_a_file_of_the_whole_detector_computes_the_same(pair, tmp_path):
    """On images of its input's size: of others a pixel in thousands is rounded to another level."""
    detector, side = pair[2], KINDS[pair[0]][1]
    example, *others = [as_tensor(image.resize((side, side))) for image in pictures(5)]
    write_whole(detector, example, tmp_path / "whole.onnx")
    session = open_session(tmp_path / "whole.onnx", "onnxruntime", "cpu", 1)
    seen = 0
    for image in others:  # whose detections may be of another number than those of the example
        (own,) = detector([image])
        expected = Detections(*(own[name].numpy() for name in Detections._fields))
        check_same(expected, Detections(*session(image.numpy())), 0.1, 1e-3)
        seen += len(expected.scores)
    assert seen > 3
