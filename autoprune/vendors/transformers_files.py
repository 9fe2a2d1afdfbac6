"""What a folder of Transformers, or a model in the cache of its hub, holds; nothing is ever fetched."""

from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from autoprune.checkpoints.parts import index_of, read_parts, tensors_alone
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


def tensors_of(folder: Path) -> dict[str, Any]:
    """The tensors of a folder's files, without running code of them.

    Raises:
        ModelError: there are none, one can't be read, or the index names others than those in the folder.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return tensors_alone(read_checkpoint(folder / name), folder / name)
        if (index := index_of(folder / name)).is_file():
            return read_parts(index)
    raise ModelError(
        f"{folder} holds no weights; it needs {' or '.join(WEIGHTS)}, or parts of it with an index"
    )
