"""Reads the file of a checkpoint, whatever its suffix, without running code of it; says what others are."""

import json
import pickle
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors

from autoprune.checkpoints.stand_ins import STAND_INS
from autoprune.errors import ModelError, out_of_memory

_HEAD = 1024  # bytes
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_AGAIN = "copy or download it again"
_REFUSED = re.compile(  # by torch's unpickler: a name, a function that is called, an object that is made
    r"GLOBAL ([\w.]+)|unrecognized function <(?:\S+ )*?([\w.]+)(?: at \w+)?>|got <class '([\w.]+)'>"
)
_SAVE = "save model.state_dict() as .safetensors or .pt"
_OTHERS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (b"version https://git-lfs",),
        "a git-lfs pointer, a text that stands for the weights",
        "`git lfs pull` in its repository fetches them",
    ),
    (
        (b"<!doctype html", b"<html", b"<?xml", b"<head"),
        "a web page, perhaps of a log-in or an error",
        _AGAIN,
    ),
    (
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!"),
        "compressed",
        "unpack it",
    ),
    ((b"\x89HDF",), "an HDF5 file, as Keras writes them", _SAVE),
    ((b"GGUF",), "a GGUF file", _SAVE),
    ((b"\x93NUMPY",), "a single array of numpy", _SAVE),
)
"""Kinds of files by their first bytes, in lower case where they are text: what they are, and what to do."""


def read_checkpoint(path: Path, device: str = "cpu", more: Sequence[tuple[type, str]] = ()) -> Any:
    """What a file holds: a tree of dicts, lists, tensors, numbers and `stand_ins`.

    A file of `torch.save` or safetensors is known by its first bytes.

    Args:
        path: the file.
        device: of the tensors in a file of `torch.save`; ``"meta"`` holds none of their values.
        more: further stand-ins, each with the full name that it replaces; it must run nothing.

    Raises:
        ModelError: the file can't be read, is of another kind, or would need code of its writer.
    """
    try:
        status = path.stat()
        if not (
            stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        ):  # a pipe would wait for a writer
            raise ModelError(
                f"cannot read weights {path}: it is a pipe or device, not a file; check --weights"
            )
        size = status.st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ModelError(f"cannot read weights {path}: {error.strerror or error}; check --weights") from error
    is_safetensors = _is_safetensors(head)
    if not is_safetensors and not head.startswith((_ZIP, _PICKLE)):
        raise ModelError(f"{path} holds no weights that can be read safely: it is {_kind(head)}")
    try:
        with out_of_memory(f"while reading {path}", "free some, or give a smaller file", ModelError):
            if is_safetensors:
                return parse_safetensors(path.read_bytes())
            with (
                warnings.catch_warnings(action="ignore"),
                torch.serialization.safe_globals([*STAND_INS, *more]),
                path.open("rb") as file,  # of a path, torch would believe the suffix
            ):
                if device != "meta":
                    _check_sums(path)
                return torch.load(file, map_location=device, weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # a damaged file can raise anything
        problem = _cut_off(path, head, size, error) or _foreign(path, error)
        raise ModelError(f"{path} holds no weights that can be read safely: {problem}") from error


def _check_sums(path: Path) -> None:
    """Compares the parts of a zip archive with their check sums, which torch does not do for tensors.

    Raises:
        ModelError: a part has another one than when it was saved.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC == 0 or part.compress_type != zipfile.ZIP_STORED:  # torch can be told to write none
                continue
            try:
                with archive.open(part) as file:
                    while file.read(2**20):
                        pass
            except (zipfile.BadZipFile, zlib.error) as error:
                raise ModelError(
                    f"{path} holds no weights that can be read safely: it is damaged, `{part.filename}` "
                    f"in it is not what was saved; {_AGAIN}"
                ) from error


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with 8 bytes, the length of a JSON text of 100 MB at most, and that text."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def _kind(head: bytes) -> str:
    """What a file is by its first bytes, and what to do."""
    if not head.strip(b"\0 \r\n\t"):
        return f"empty; {_AGAIN}" if not head else f"blank; {_AGAIN}"
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    for beginnings, what, remedy in _OTHERS:
        if start.startswith(beginnings) or start.lower().startswith(beginnings):
            return f"{what}; {remedy}"
    if b'"weight_map"' in head:
        return f"the index of weights in several files; {_SAVE} in one"
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        text = ""
    if text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable() and text:
        shown = " ".join(text.split())[:40]
        return f"a text that begins with {shown!r}; check --weights"
    return f"of no known format; {_SAVE}"


def _cut_off(path: Path, head: bytes, size: int, error: Exception) -> str | None:
    """Says so if the end of a file is missing."""
    if _is_safetensors(head):
        length = int.from_bytes(head[:8], "little")
        missing = 8 + length > size or size < 8 + length + _bytes_of_tensors(path, length)
    elif head.startswith(_ZIP):
        missing = not zipfile.is_zipfile(path)
    else:
        missing = isinstance(error, EOFError) or "EOF" in str(error) or "unexpected pos" in str(error)
    return f"it is cut off after {size:,} bytes; {_AGAIN}" if missing else None


def _bytes_of_tensors(path: Path, length: int) -> int:
    """Bytes that the header of a safetensors file, ``length`` bytes long, says that its tensors have."""
    try:
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        return max(
            (entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return 0  # the header itself is damaged


def _foreign(path: Path, error: Exception) -> str:
    """Why a whole file of a known format can't be read."""
    text = str(error)
    if refused := _REFUSED.search(text):
        name = next(part for part in refused.groups() if part)
        return (
            f"it needs `{name}`, and code that a file names is not run; where you trust it, load it with "
            f"torch.load and {_SAVE}"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = [Path(name) for name in archive.namelist()]
        if any("code" in name.parts[:-1] for name in inside):
            return f"it is a TorchScript archive; {_SAVE} of the eager model"
        if not any(name.name == "data.pkl" for name in inside):
            return f"it is a zip archive that torch.save did not write; unpack it, or {_SAVE}"
    if "magic number" in text:
        return f"it is a pickle that torch.save did not write; {_SAVE}"
    if "Unsupported operand" in text:
        return f"it is a pickle that torch.save did not write, or of another pickle protocol; {_SAVE}"
    reason = re.search(r"WeightsUnpickler error: ([^\n]+)", text)
    shown = " ".join((reason[1] if reason else text or type(error).__name__).split())[:120]
    if isinstance(error, pickle.UnpicklingError):
        return f"it is damaged, or needs code of its writer ({shown}); {_SAVE}"
    return f"it is damaged ({shown}); {_AGAIN}"
