"""Tests of the resizing of vendors' images: as torchvision's where it is set so, and there and back."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from autoprune.data.coco import open_data
from autoprune.resize import pixel_resizing
from autoprune.vendors import DetectorTransform

from ..data.conftest import box, write_set

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def pictures(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("fixed", [None, (128, 96)])
def test_a_batch_is_torchvisions_where_the_settings_are(fixed):
    images = pictures((48, 64), (64, 32), (96, 96))
    targets = [{"boxes": torch.tensor([[3.0, 5, 30, 31]]), "labels": torch.tensor([2])} for _ in images]
    sizes = {"min_size": 96, "max_size": 128, "image_mean": MEAN, "image_std": STD, "fixed_size": fixed}
    theirs = GeneralizedRCNNTransform(**sizes, size_divisible=32).eval()
    ours = DetectorTransform(**sizes, size_divisible=32, antialias=False, rounded=False)
    expected, expected_targets = theirs([each.clone() for each in images], [dict(each) for each in targets])
    batch, placed = ours(images, targets)

    assert batch.image_sizes == expected.image_sizes
    assert batch.tensors.shape == expected.tensors.shape
    for got, wanted, (height, width) in zip(
        batch.tensors, expected.tensors, batch.image_sizes, strict=True
    ):  # the padding of both is 0
        torch.testing.assert_close(got[:, :height, :width], wanted[:, :height, :width], rtol=0, atol=1e-5)
        assert got[:, height:].abs().sum() == got[:, :, width:].abs().sum() == 0
    for got, wanted in zip(placed, expected_targets, strict=True):
        torch.testing.assert_close(got["boxes"], wanted["boxes"])
        assert torch.equal(got["labels"], wanted["labels"])

    detections = [{"boxes": each["boxes"], "scores": torch.ones(1)} for each in placed]
    originals = [tuple(each.shape[-2:]) for each in images]
    expected = theirs.postprocess([dict(each) for each in detections], batch.image_sizes, originals)
    for got, wanted in zip(ours.postprocess(detections, batch.image_sizes, originals), expected, strict=True):
        torch.testing.assert_close(got["boxes"], wanted["boxes"])


SIDES = st.integers(8, 200)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=3),
    side=st.integers(16, 120),
    longest=st.integers(0, 60),
    fixed=st.booleans(),
    placement=st.sampled_from(["corner", "center"]),
    step=st.sampled_from([1, 7, 32]),
    data=st.data(),
)
def test_boxes_come_back_where_they_were(sizes, side, longest, fixed, placement, step, data):
    rule = {"fixed_size": (side, side + longest)} if fixed else {"min_size": side, "max_size": side + longest}
    transform = DetectorTransform(**rule, placement=placement, size_divisible=step)
    images, targets = [], []
    for height, width in sizes:
        x1, y1 = data.draw(st.floats(0, width - 1)), data.draw(st.floats(0, height - 1))
        x2, y2 = data.draw(st.floats(x1, width)), data.draw(st.floats(y1, height))
        images.append(torch.zeros(3, height, width))
        targets.append({"boxes": torch.tensor([[x1, y1, x2, y2]])})
    batch, placed = transform(images, targets)
    *_, height, width = batch.tensors.shape
    assert height % step == width % step == 0
    for each in placed:
        x1, y1, x2, y2 = each["boxes"][0].tolist()
        assert -1e-3 <= x1 <= x2 <= width + 1e-3
        assert -1e-3 <= y1 <= y2 <= height + 1e-3
    back = transform.postprocess(placed, batch.image_sizes, sizes)
    for got, target in zip(back, targets, strict=True):
        torch.testing.assert_close(got["boxes"], target["boxes"], rtol=0, atol=1e-3)


def test_a_box_lies_on_what_it_encloses():
    image = torch.zeros(3, 60, 40)
    image[:, 20:40, 10:30] = 1
    targets = [{"boxes": torch.tensor([[10.0, 20, 30, 40]])}]
    for placement in ("corner", "center"):
        transform = DetectorTransform(90, 90, size_divisible=64, placement=placement, fill=0.0)
        batch, placed = transform([image], targets)
        bright = (batch.tensors[0, 0] > 0.5).nonzero()
        top, left = bright.min(0).values
        bottom, right = bright.max(0).values + 1
        assert placed[0]["boxes"][0].tolist() == [left, top, right, bottom]
        assert (left, top) == ((15, 30) if placement == "corner" else (17, 49))


def test_padding_has_its_value_before_or_behind_the_normalization():
    image = torch.ones(3, 32, 16)
    for normalized, expected in ((True, [0.5] * 3), (False, [0.5, 0.0, -1 / 3])):
        transform = DetectorTransform(
            32, 32, size_divisible=32, image_mean=MEAN, image_std=STD, fill=0.5, fill_normalized=normalized
        )
        batch, _ = transform([image])
        torch.testing.assert_close(batch.tensors[0, :, 5, 20], torch.tensor(expected))


def test_boxes_outside_of_the_image_are_cut():
    transform = DetectorTransform(fixed_size=(64, 64))
    detections = [{"boxes": torch.tensor([[-5.0, 10, 80, 64]])}]
    (cut,) = transform.postprocess(detections, [(64, 64)], [(32, 128)])
    assert cut["boxes"].tolist() == [[0, 5, 128, 32]]


@pytest.mark.parametrize("antialias", [True, False])
@settings(max_examples=60, deadline=None)
@given(size=st.tuples(SIDES, SIDES), side=st.integers(16, 120), longest=st.integers(0, 60))
def test_an_image_that_was_resized_before_keeps_its_size_and_pixels(antialias, size, side, longest):
    transform = DetectorTransform(side, side + longest, antialias=antialias, rounded=True)
    image = (pictures(size)[0] * 255).to(torch.uint8)
    before = transform.resize_pixels(image)
    assert before.shape[-2:] == transform.resized_size(size) == transform.resized_size(before.shape[-2:])
    whole, _ = transform([image / 255])
    once, _ = transform([before / 255])
    assert once.image_sizes == whole.image_sizes
    torch.testing.assert_close(once.tensors, whole.tensors, rtol=0, atol=1e-6)


def test_data_is_resized_by_the_transform_of_the_detector(tmp_path):
    """Pixels and boxes are those that the transform makes of the stored image, and not Pillow's."""
    pixels = np.random.default_rng(0).integers(0, 256, (65, 90, 3), np.uint8)
    folder = write_set(tmp_path, [box(1, 1, (10, 20, 30, 40))], size=(65, 90))
    for file in (folder / "images").rglob("a.png"):
        Image.fromarray(pixels).save(file)
    stored = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    boxes = {"boxes": torch.tensor([[10.0, 20, 40, 60]])}
    made = []
    for antialias in (True, False):
        detector = SimpleNamespace(transform=DetectorTransform(33, 33, antialias=antialias))
        split = open_data(folder, "val", pixel_resizing(detector))
        (image,), (target,) = split.batch([0])
        whole, (placed,) = detector.transform([stored], [boxes])
        assert split.sizes[0] == (24, 33) == whole.image_sizes[0]  # 65 / 90 of 33 is 23.8
        torch.testing.assert_close(image, whole.tensors[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(target["boxes"], placed["boxes"])
        made.append(image)
    assert (made[0] - made[1]).abs().max() > 0.2


def test_the_size_of_every_batch_is_known_where_images_are_stretched():
    assert DetectorTransform(96, 128).only_size is None
    stretching = DetectorTransform(fixed_size=(100, 64), size_divisible=32)
    assert stretching.only_size == (64, 128) == tuple(stretching(pictures((48, 64)))[0].tensors.shape[-2:])


@pytest.mark.parametrize("normalized", [False, True])
def test_the_color_of_the_padding_is_that_before_normalization(normalized):
    transform = DetectorTransform(
        96, 96, size_divisible=128, image_mean=MEAN, image_std=STD, fill=0.3, fill_normalized=normalized
    )
    batch, _ = transform(pictures((48, 96)))
    corner = batch.tensors[0, :, -1, -1] * torch.tensor(STD) + torch.tensor(MEAN)
    assert transform.color == pytest.approx(corner.tolist())
