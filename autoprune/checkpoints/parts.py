"""Weights in several files, with an index beside them: as the Transformers library writes large models."""

import json
from pathlib import Path
from typing import Any

from autoprune.checkpoints.quantized import refuse_quantized
from autoprune.checkpoints.read import read_checkpoint
from autoprune.errors import ModelError


def index_of(weights: Path) -> Path:
    """The index that stands beside the parts of a file, in its place."""
    return weights.with_name(f"{weights.name}.index.json")


def read_parts(index: Path) -> dict[str, Any]:
    """The tensors of all files that an index names, without running code of them.

    Raises:
        ModelError: one can't be read or is no state dict, or the index names others than those in its folder.
    """
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise ModelError(f"{index} names no files (`weight_map`); copy or download it again")
    merged: dict[str, Any] = {}
    for part in sorted(set(map(str, parts.values()))):
        if Path(part).name != part:
            raise ModelError(f"{index} names {part!r}, which is not in its folder")
        merged |= tensors_alone(read_checkpoint(index.parent / part), index.parent / part)
    if missing := sorted(set(parts) - set(merged)):
        raise ModelError(f"{index.parent}: `{missing[0]}` of {index.name} is in no file; copy them again")
    return merged


def tensors_alone(content: Any, path: Path) -> dict[str, Any]:
    """Refuses what is no flat state dict of real numbers.

    Raises:
        ModelError: names the first tensor that is not, where there are tensors.
    """
    if not isinstance(content, dict) or not all(hasattr(value, "shape") for value in content.values()):
        raise ModelError(f"{path} holds more than tensors; give what the vendor's save_pretrained writes")
    if name := next((name for name, value in content.items() if value.is_complex()), None):
        raise ModelError(f"{path}: `{name}` holds complex numbers, and a detector has real ones")
    for name, value in content.items():
        refuse_quantized(name, value, path)
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ModelError: it can't be read or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({str(error)[:100]}); copy or download it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, and holds a {type(content).__name__}")
    return content
