"""What a folder of Transformers, or a model in the cache of its hub, holds; nothing is ever fetched."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from autoprune.checkpoints.read import read_checkpoint
from autoprune.errors import ModelError
from autoprune.fields import HUB_ID

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files with weights, the first that is there; each may be split into several, with an index."""
POLICY = "policy.yaml"


def folder_of(source: str) -> Path:
    """The folder that a source names: itself, or that of a model in the local cache of the hub.

    Raises:
        ModelError: there is none, or it holds no config, or a pruned detector.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        raise ModelError(
            f"model transformers:{source} names a file; give its folder, which holds {CONFIG} too"
        )
    if not folder.is_dir():
        cached = try_to_load_from_cache(source, CONFIG) if HUB_ID.fullmatch(source) else None
        if not isinstance(cached, str):
            fetch = f", or fetch it with `hf download {source}` first" if HUB_ID.fullmatch(source) else ""
            raise ModelError(
                f"model transformers:{source}: no such folder, and no such model in "
                f"{constants.HF_HUB_CACHE}; give a folder with {CONFIG} and model.safetensors{fetch}"
            )
        folder = Path(cached).parent
    if (folder / POLICY).is_file():
        raise ModelError(
            f"{folder} holds a pruned detector, and a dense one is needed here; give the folder itself to "
            "`autoprune eval`, `export` or `latency`, or to autoprune.load in Python"
        )
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} holds no {CONFIG}; give a folder that the vendor's save_pretrained wrote")
    return folder


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


def tensors_of(folder: Path) -> dict[str, Any]:
    """The tensors of a folder's files, without running code of them.

    Raises:
        ModelError: there are none, one can't be read, or the index names others than those in the folder.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _checked(read_checkpoint(folder / name), folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = read_object(index).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise ModelError(f"{index} names no files (`weight_map`); copy or download it again")
            merged: dict[str, Any] = {}
            for part in sorted(set(map(str, parts.values()))):
                if Path(part).name != part:
                    raise ModelError(f"{index} names {part!r}, which is not in its folder")
                merged |= _checked(read_checkpoint(folder / part), folder / part)
            if missing := sorted(set(parts) - set(merged)):
                raise ModelError(f"{folder}: `{missing[0]}` of {index.name} is in no file; copy them again")
            return merged
    raise ModelError(
        f"{folder} holds no weights; it needs {' or '.join(WEIGHTS)}, or parts of it with an index"
    )


def _checked(content: Any, path: Path) -> dict[str, Any]:
    """Refuses a checkpoint that is no state dict."""
    if not isinstance(content, dict) or not all(hasattr(value, "shape") for value in content.values()):
        raise ModelError(f"{path} holds more than tensors; give what the vendor's save_pretrained writes")
    return content
