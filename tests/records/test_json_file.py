"""JSON files that are none: what each is, where it goes wrong, and what to do, in one line."""

import bz2
import gzip
import json
import lzma
import zipfile

import pytest

from autoprune.errors import DataError
from autoprune.records.json_file import read_json

CONTENT = {
    "images": [{"id": 1, "file_name": "Zäune \\ 画.png", "width": 4.5e1}],
    "ok": [True, False, None, -1],
}
TEXT = json.dumps(CONTENT, ensure_ascii=False)


def refused(file):
    with pytest.raises(DataError) as error:
        read_json(file)
    message = str(error.value)
    assert message.isprintable()
    assert str(file) in message
    assert "set_int_max_str_digits" not in message
    return message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes(TEXT.encode(encoding))
    assert read_json(tmp_path / "a.json") == CONTENT


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_latin_1_is_named_with_the_byte(tmp_path, mark):
    data = mark + '{"name": "Zäune"}'.encode("latin-1")
    (tmp_path / "a.json").write_bytes(data)
    place = data.index(b"\xe4")
    assert f"byte {place} (0xe4) is no UTF-8; re-save as UTF-8" in refused(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)]
)
def test_compressed(tmp_path, name, pack):
    (tmp_path / "a.json").write_bytes(pack(TEXT.encode()))
    assert f"it is a {name} file; unpack it" in refused(tmp_path / "a.json")


def test_zip_and_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.json", "w") as archive:
        archive.writestr("b.json", TEXT)
    assert "it is a zip file; unpack it" in refused(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"")
    assert "it is empty; copy it again" in refused(tmp_path / "b.json")
    assert "cannot read" in refused(tmp_path / "lost.json")


def test_cut_off_anywhere(tmp_path):
    file, data = tmp_path / "a.json", TEXT.encode()
    for length in range(1, len(data)):
        file.write_bytes(data[:length])
        message = refused(file)
        assert "copy it again" in message
        try:
            characters = len(data[:length].decode())
        except UnicodeDecodeError:
            assert f"it ends at byte {length}, within a character" in message
        else:
            assert f"it is cut off, it ends at character {characters};" in message


def test_other_faults_are_not_called_cut_off(tmp_path):
    file = tmp_path / "a.json"
    for text in (
        '{"a": 1,}',
        '{"a" 1}',
        "{'a': 1}",
        '{"a": x}',
        "[1, 2}",
        "hello",
        '{"a": 1} end',
        '{"a": "\n"}',
    ):
        file.write_text(text)
        message = refused(file)
        assert "cut off" not in message
        assert "fix it in the file, or export it again" in message


def test_json_lines(tmp_path):
    (tmp_path / "a.json").write_text('{"id": 1}\n{"id": 2}\n')
    message = refused(tmp_path / "a.json")
    assert "the second in line 2, as JSON Lines" in message


def test_endless_numbers_and_nesting(tmp_path):
    (tmp_path / "a.json").write_text('{"id": -' + "7" * 5000 + "}")
    assert "a whole number has 5000 digits at character 8; fix it in the file" in refused(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[" * 200_000)
    assert "nested too deeply" in refused(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "annotations": [1], "annotations": []}', '"annotations", in that with "images": []'),
        ('{"a": [{"id": 7, "bbox": [1], "bbox": [2]}]}', '"bbox", in that with "id": 7'),
        ('{"a": 1, "a": 1}', '"a"'),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        read_json(file)
    assert (
        str(error.value) == f"{file}: a mapping has a key twice, {message}; remove one of the two in the file"
    )
