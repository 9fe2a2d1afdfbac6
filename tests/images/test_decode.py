"""Sizes against torchvision's transform, pixels against Pillow's and torch's own resizing."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as reference

from autoprune.data.coco import open_data
from autoprune.detectors import Resize
from autoprune.errors import DataError
from autoprune.images import decode

from ..data.conftest import BOX, box, drawing, one_line, save_turned, shown, turned, write_set


@pytest.mark.parametrize("rule", [Resize(192, 256), Resize(800, 1333), Resize(128, 128), Resize(33, 1000)])
def test_resized_size_is_torchvisions_and_its_own_fixed_point(rule):
    transform = GeneralizedRCNNTransform(rule.min_size, rule.max_size, [0.0] * 3, [1.0] * 3).eval()

    def torchvisions(size: tuple[int, int]) -> tuple[int, int]:
        resized, _ = transform.resize(torch.empty((3, *size), device="meta"))
        return (int(resized.shape[1]), int(resized.shape[2]))

    rng, off = np.random.default_rng(0), 0
    sizes = [(480, 640), (427, 640), (640, 427), (5, 90), (333, 500), (50, 50)]
    sizes += [tuple(map(int, rng.integers(8, 1500, 2))) for _ in range(40)]
    for size in sizes:
        mine, first = decode.resized_size(size, rule), torchvisions(size)
        assert torchvisions(mine) == mine, "the detector's own resizing must change nothing"
        off += mine != first
        assert max(abs(a - b) for a, b in zip(mine, first, strict=True)) <= 1
    assert off <= 0.2 * len(sizes), "one more pixel only where torchvision's rounding is not stable"


def test_pixels_are_pillows_antialiased_bilinear_ones(tmp_path):
    split = open_data(write_set(tmp_path, [box(1, 1)], size=(60, 80)), "val", Resize(30, 40))
    picture, _ = split.get(0)
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    expected = reference.pil_to_tensor(Image.fromarray(noise).resize((40, 30), Image.Resampling.BILINEAR))
    assert picture.dtype == torch.uint8
    assert torch.equal(picture, expected)
    floats = torch.from_numpy(noise).permute(2, 0, 1)[None].float()
    other = torch.nn.functional.interpolate(floats, (30, 40), mode="bilinear", antialias=True)[0]
    assert (picture - other).abs().max() <= 1
    batch, _ = split.batch([0])
    torch.testing.assert_close(batch[0], expected.float() / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(30, 40), (32, 32)])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_an_image_is_upright_or_as_stored_in_header_and_pixels(tmp_path, orientation, size, suffix):
    drawn = drawing(size)
    file = save_turned(tmp_path / f"a.{suffix}", drawn, orientation)
    header = decode.read_header(file)
    stored = turned(drawn, orientation)
    assert (header.size, header.stored) == (size, stored.shape[:2])
    assert header.orientation == orientation
    upright = decode.decode(file, size)
    assert np.abs(upright.permute(1, 2, 0).numpy().astype(int) - drawn).max() < 90  # JPEG's edges
    assert shown(upright) == BOX
    as_stored = decode.decode(file, stored.shape[:2], decode.View(stored=True))
    assert shown(as_stored) == shown(stored.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_entry_turns_nothing(tmp_path):
    for name, exif in (
        ("a.jpg", b"Exif\0\0nothing of the kind"),
        ("b.jpg", b"Exif\0\0II*\0\xff\xff\xff\xff"),
    ):
        Image.fromarray(drawing((30, 40))).save(tmp_path / name, exif=exif)
        assert decode.read_header(tmp_path / name).orientation == 1
    exif = Image.Exif()
    exif[decode.EXIF_ORIENTATION] = 9
    Image.fromarray(drawing((30, 40))).save(tmp_path / "c.jpg", exif=exif)
    assert decode.read_header(tmp_path / "c.jpg").orientation == 1
    assert shown(decode.decode(tmp_path / "c.jpg", (30, 40))) == BOX


def test_a_replaced_image_has_another_header(tmp_path):
    Image.new("L", (10, 20)).save(tmp_path / "a.png")
    assert decode.header_size(tmp_path / "a.png") == (20, 10)
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    assert decode.header_size(tmp_path / "a.png") == (100, 200)


def test_an_image_cut_short_is_named_when_it_is_read(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)], names=("a.jpg",), size=(200, 200))
    file = folder / "images/a.jpg"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"cannot decode .*a\.jpg") as error:
        open_data(folder, "val").get(0)
    one_line(error)


def test_the_images_of_a_folder_are_sorted_and_of_pillows_suffixes(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in decode.image_files(tmp_path)] == ["a.png", "b.JPG", "c.webp"]
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "no images in"), ("lost", "there is no such folder")):
        with pytest.raises(DataError, match=message) as error:
            decode.image_files(tmp_path / name)
        assert "--images" in one_line(error)


def test_a_picture_of_too_many_pixels_is_named_with_their_number(tmp_path, monkeypatch):
    Image.new("L", (300, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(DataError, match=r"a\.png has 30,000 pixels, more than are read; save it smaller"):
        decode.header_size(tmp_path / "a.png")
