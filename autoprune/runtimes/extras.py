"""Libraries that only some users need, imported where they are used."""

from importlib import import_module
from typing import Any

from autoprune.errors import ConfigError

EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}
"""For each library, the optional extra of autoprune that installs it; others come with autoprune."""


def need(library: str) -> Any:
    """Imports an optional library.

    Raises:
        ConfigError: it is not installed; the message names the extra.
    """
    try:
        return import_module(library)
    except ImportError as error:
        if library not in EXTRAS:
            raise
        raise ConfigError(
            f"{library} can't be imported ({error}); install it with "
            f"`pip install 'autoprune[{EXTRAS[library]}]'`"
        ) from error
