"""Libraries that only some users need, imported where they are used."""

from importlib import import_module
from typing import Any

from autoprune.errors import ConfigError

EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}
"""For each library, the optional extra of autoprune that brings it."""


def need(library: str) -> Any:
    """Imports an optional library.

    Raises:
        ConfigError: it is not installed; the message names the extra.
    """
    try:
        return import_module(library)
    except ImportError as error:
        extra = EXTRAS[library]
        raise ConfigError(
            f"{library} can't be imported ({error}); install it with `pip install 'autoprune[{extra}]'`"
        ) from error


def need_runtime(runtime: str) -> None:
    """Refuses a runtime that is not installed; all but torch read ONNX files.

    Raises:
        ConfigError: names the extra that brings what is missing.
    """
    if runtime != "torch":
        need(runtime)
        need("onnx")
