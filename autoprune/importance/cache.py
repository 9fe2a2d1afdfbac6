"""`importance.safetensors`: the scores of one or several criteria, each with a hash of all it depends on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from autoprune.checkpoints.write import write_tensors
from autoprune.errors import RunError
from autoprune.importance.reduce import Importance

FORMAT = "1"  # raise it when a criterion's formula changes: older scores are then computed again


def settings_hash(**settings: Any) -> str:
    """SHA-256 of what scores depend on: the weights' hash, the data, the criterion's settings (as JSON)."""
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def save(
    path: Path,
    criterion: str,
    key: str,
    importance: Mapping[str, np.ndarray[Any, Any]],
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Adds the scores of ``criterion`` to the file, replacing older ones of the same criterion.

    Args:
        path: the file.
        criterion: its name.
        key: hash of all that the scores depend on.
        importance: {group: [width]}.
        origin: what the key is made of, as JSON values; `origin_of` reads it back, to say what differs.

    Raises:
        RunError: the file can't be written, or what it holds can't be read.
    """
    tensors, metadata = _read(path) if path.exists() else ({}, {})
    tensors = {name: scores for name, scores in tensors.items() if name.partition("/")[0] != criterion}
    for group, scores in importance.items():
        tensors[f"{criterion}/{group}"] = torch.from_numpy(np.array(scores, dtype=np.float64))
    write_tensors(path, tensors, {**metadata, criterion: key, _origin(criterion): json.dumps(origin or {})})


def load(path: Path, criterion: str, key: str | None = None) -> Importance | None:
    """Reads the scores of ``criterion``; ``None`` where the file has none, or has them under another ``key``.

    Raises:
        RunError: the file is not a safetensors file, or holds other things than scores.
    """
    if not path.exists():
        return None
    tensors, metadata = _read(path)
    if criterion not in metadata or key not in (None, metadata[criterion]):
        return None
    selected = {
        name.partition("/")[2]: scores
        for name, scores in tensors.items()
        if name.partition("/")[0] == criterion
    }
    for name, scores in selected.items():
        if scores.dtype != torch.float64 or scores.dim() != 1 or not bool(torch.isfinite(scores).all()):
            raise damaged(path, f"the {criterion} scores of {name} are no list of finite numbers")
    return {name: scores.numpy() for name, scores in selected.items()}


def origin_of(path: Path, criterion: str) -> dict[str, Any] | None:
    """What the scores of ``criterion`` were made of; nothing in files of earlier versions.

    Returns:
        ``None`` where the file has no scores of it.

    Raises:
        RunError: the file is not a safetensors file.
    """
    metadata = _read(path)[1] if path.exists() else {}
    if criterion not in metadata:
        return None
    try:
        origin = json.loads(metadata.get(_origin(criterion), "{}"))
    except ValueError:
        return {}
    return origin if isinstance(origin, dict) else {}


def _origin(criterion: str) -> str:
    return f"origin of {criterion}"


def check_readable(path: Path) -> None:
    """Refuses what is not a safetensors file.

    Raises:
        RunError: names the file and the remedy.
    """
    _read(path)


def damaged(path: Path, problem: object) -> RunError:
    """The error to raise for a file of scores that can't be used."""
    return RunError(f"{path} can't be read ({problem}); delete it, and the scores are computed again")


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error
