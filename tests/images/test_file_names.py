"""Which files a name can mean."""

import pytest

from autoprune.images.file_names import readings
from autoprune.images.locate import find_image


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a.png", "a.png"),
        ("images\\a.png", "a.png"),
        ("sub\\a.png", "sub/a.png"),
        ("./a.png", "./a.png"),
        ("/home/someone/data/images/a.png", "a.png"),
        ("C:\\data\\images\\a.png", "a.png"),
        ("train/images/sub/a.png", "sub/a.png"),
        ("/data/upload/3/0a1b2c3d-a.png", "a.png"),
        ("0a1b2c3d-a.png", "a.png"),
        ("/data/local-files/?d=photos/sub/a.png", "sub/a.png"),
        ("/data/local-files/?d=photos%5Csub%5Ca.png", "sub/a.png"),
        ("https://host/bucket/a.png?token=x", "a.png"),
        ("file:///srv/images/z%C3%A4une.png", "zäune.png"),
        ("s3://bucket/images/a.png", "a.png"),
        ("z%C3%A4une.png", "zäune.png"),
    ],
)
def test_the_file_that_is_meant(tmp_path, text, meant):
    for name in ("a.png", "sub/a.png", "zäune.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_image(text, [tmp_path / "none", tmp_path]) == (tmp_path / meant, text == meant)


def test_the_most_literal_file_wins(tmp_path):
    for name in ("0a1b2c3d-a.png", "a.png", "b\\a.png"):
        (tmp_path / name).touch()
    for name in ("0a1b2c3d-a.png", "b\\a.png"):
        assert find_image(name, [tmp_path]) == (tmp_path / name, True)


def test_an_absolute_path_that_exists_is_taken(tmp_path):
    (tmp_path / "a.png").touch()
    assert find_image(str(tmp_path / "a.png"), [tmp_path / "other"]) == (tmp_path / "a.png", True)


@pytest.mark.parametrize("text", ["lost.png", "", "a\0b", "\ud800", "http://[", "x" * 5000, "..", "?d="])
def test_a_name_of_no_file_stays_as_it_is(tmp_path, text):
    assert find_image(text, [tmp_path]) == (None, False)
    assert next(iter(readings(text))) == text
