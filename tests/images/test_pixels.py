"""Every mode of Pillow as 8-bit RGB, and the range of grays of more than 8 bits."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.images import decode
from autoprune.images.pixels import Levels, measure_levels, to_rgb

from ..data.conftest import BOX, as_mode, box, drawing, edit, save_turned, shown, write_set

SUFFIX = {
    **dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "png"),
    **dict.fromkeys(("PA", "YCbCr", "LAB", "I", "I;16B", "F"), "tiff"),
    "CMYK": "jpg",
}


@pytest.mark.parametrize("mode", SUFFIX)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_box_ends_on_its_pixels_in_every_mode_and_orientation(tmp_path, mode, orientation):
    folder = write_set(tmp_path, [box(1, 1, BOX)], names=("a.png",))
    name = f"a.{SUFFIX[mode]}"
    save_turned(folder / "images" / name, drawing((30, 40)), orientation, mode)
    with Image.open(folder / "images" / name) as stored:
        assert stored.mode == mode
    edit(folder, lambda content: content["images"][0].update(file_name=name))
    split = open_data(folder, "val", strict=True)
    pixels, target = split.get(0)
    x1, y1, x2, y2 = target["boxes"][0].tolist()
    assert [x1, y1, x2 - x1, y2 - y1] == shown(pixels) == BOX
    assert pixels[:, 5, 10].min() > 230  # inside of the box
    assert pixels[:, 20:, 30:].float().mean() < 25


@pytest.mark.parametrize("mode", [*SUFFIX, "HSV", "RGBa", "RGBX", "I;16L", "I;16N"])
def test_every_mode_becomes_rgb_in_memory(mode):
    picture = Image.fromarray(drawing((30, 40)))
    source = picture.convert("RGBA").convert(mode) if mode == "RGBa" else as_mode(picture, mode)
    rgb = to_rgb(source)
    assert rgb.mode == "RGB"
    assert shown(np.asarray(rgb).transpose(2, 0, 1)) == BOX


RANGES = [
    (np.uint16, 4080, Levels(0, 4096)),  # 12 bits
    (np.uint16, 1000, Levels(0, 1024)),  # 10 bits
    (np.uint16, 65535, Levels(0, 65536)),
    (np.uint16, 200, Levels(0, 256)),  # 8 bits in a larger container
    (np.int32, 2**20, Levels(0, 2**21)),
    (np.float32, 1.0, Levels(0, 1)),
    (np.float32, 0.9, Levels(0, 1)),
    (np.float32, 254.5, Levels(0, 256)),
    (np.float32, 4095.0, Levels(0, 4096)),
    (np.float32, 0.06, Levels(0, 0.0625)),
]


@pytest.mark.parametrize(("dtype", "highest", "levels"), RANGES)
def test_the_levels_are_those_of_the_set(tmp_path, dtype, highest, levels):
    files = []
    for number, fraction in enumerate((0.3, 1.0, 0.5)):
        values = (np.linspace(0, 1, 1200).reshape(30, 40) * highest * fraction).astype(dtype)
        files.append(tmp_path / f"{number}.tiff")
        Image.fromarray(values).save(files[-1])
    assert measure_levels(files) == levels
    dark = decode.decode(files[0], (30, 40), decode.View(levels=levels))
    expected = np.floor(np.asarray(Image.open(files[0])).astype(np.float64) / levels.high * 256)
    assert np.array_equal(dark[0].numpy(), expected)
    assert 0.25 * 127 < dark.max() < 0.31 * 256, "an image of the set is as dark as it is in the set"


def test_values_below_zero_stretch_from_the_lowest_to_the_highest(tmp_path):
    values = np.linspace(-1000, 3000, 1200).reshape(30, 40).astype(np.int32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert measure_levels([tmp_path / "a.tiff"]) == Levels(-1000, 3000)
    pixels = decode.decode(tmp_path / "a.tiff", (30, 40))
    assert (pixels[0, 0, 0], pixels[0, -1, -1]) == (0, 255)
    assert abs(int(pixels[0].flatten()[600]) - 128) <= 1


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf, -9999, 1e38])
def test_missing_pixels_do_not_decide_the_range(tmp_path, missing):
    values = np.linspace(0, 1, 10_000).reshape(100, 100).astype(np.float32)
    values[0, :3] = missing
    Image.fromarray(values).save(tmp_path / "a.tiff")
    low, high = measure_levels([tmp_path / "a.tiff"])
    assert (low, high) == pytest.approx((0, 1), abs=0.01)
    assert abs(int(decode.decode(tmp_path / "a.tiff", (100, 100))[0, 50, 50]) - 128) <= 2


def test_a_set_of_12_bits_is_read_as_its_8_bit_version_and_says_so(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2, 30, 40), np.uint8)
    for name in ("eight", "twelve"):
        folder = write_set(tmp_path / name, [box(1, 1)])
        for gray, file in zip(noise, ("a.png", "b.png"), strict=True):
            Image.fromarray(gray if name == "eight" else gray.astype(np.uint16) << 4).save(
                folder / "images" / file
            )
    eight, twelve = (open_data(tmp_path / name, "val", strict=True) for name in ("eight", "twelve"))
    assert all(np.array_equal(eight.get(index)[0], twelve.get(index)[0]) for index in range(2))
    assert eight.notes == []
    (note,) = twelve.notes
    assert "grays of more than 8 bits in 2 of 2 images: 0 is read as black and 4096 as white" in note
    assert eight.fingerprint != twelve.fingerprint


def save_deep(file, values, kind):
    """Writes 16-bit colors, which Pillow itself can't: a PNG by its specification, or a TIFF by libtiff."""
    height, width, channels = values.shape
    if kind == "tiff":
        header = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
        bits = 8 + values.nbytes + 2 + 10 * 12 + 4
        entries = [
            (256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, bits), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, 8), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, values.nbytes),
            (284, 3, 1, 1),
        ]  # fmt: skip
        fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        body = values.astype("<u2").tobytes() + struct.pack("<H", len(entries)) + fields + bytes(4)
        file.write_bytes(header + body + struct.pack(f"<{channels}H", *[16] * channels))
        return
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    color = {2: 4, 3: 2, 4: 6}[channels]
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )


@pytest.mark.parametrize(("channels", "kind"), [(2, "png"), (3, "png"), (4, "png"), (3, "tiff")])
def test_colors_of_16_bits_are_their_upper_8(tmp_path, channels, kind):
    values = np.random.default_rng(0).integers(0, 2**16, (30, 40, channels)).astype(np.uint16)
    folder = write_set(tmp_path, [box(1, 1)], names=("a.png", "b.png"))
    save_deep(folder / "images/a.deep", values, kind)
    save_deep(folder / "images/b.deep", values >> 9, kind)  # dark, in a set that is not
    edit(
        folder,
        lambda content: [
            image.update(file_name=image["file_name"][0] + ".deep") for image in content["images"]
        ],
    )
    split = open_data(folder, "val", strict=True)
    expected = (values >> 8).astype(np.uint8).transpose(2, 0, 1)
    assert np.array_equal(split.get(0)[0].numpy(), expected[[0, 0, 0]] if channels == 2 else expected[:3])
    assert split.notes == ["colors of 16 bits in 2 of 2 images: the upper 8 are read"]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_colors_of_fewer_bits_in_16_are_refused_by_name(tmp_path, bits, kind):
    values = np.random.default_rng(0).integers(0, 2**bits, (30, 40, 3)).astype(np.uint16)
    folder = write_set(tmp_path, [box(1, 1)], names=("a.png", "b.png"))
    save_deep(folder / "images/b.png", values, kind)
    with pytest.raises(DataError) as error:
        open_data(folder, "val")
    assert f"{folder}/images/b.png stores 16 bits of each color" in str(error.value)
    assert f"the highest value is below {2**bits} of 65536; save them with 8 bits" in str(error.value)


def test_both_splits_have_the_range_of_the_set(tmp_path):
    for split, bits in (("train", 12), ("val", 9)):
        folder = write_set(tmp_path, [box(1, 1)], split=split, names=(f"{split}.png",))
        values = np.linspace(0, 2**bits - 1, 1200).reshape(30, 40).astype(np.uint16)
        Image.fromarray(values).save(folder / f"images/{split}.png")
    train, val = (open_data(tmp_path, split) for split in ("train", "val"))
    assert (train.get(0)[0].max(), val.get(0)[0].max()) == (255, 31)


def test_an_image_cut_short_that_would_tell_the_range_is_named(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)], names=("a.png",))
    Image.fromarray(np.random.default_rng(0).integers(0, 4096, (100, 100)).astype(np.uint16)).save(
        folder / "images/a.png"
    )
    edit(folder, lambda content: content["images"][0].update(width=100, height=100))
    file = folder / "images/a.png"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cannot decode .*a\.png"):
        open_data(folder, "val").get(0)
