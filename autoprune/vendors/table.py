"""The libraries whose detectors autoprune takes, and what each module of them gives."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from torch import nn

from autoprune.errors import ModelError
from autoprune.fields import VENDORS


@dataclass(frozen=True)
class Description:
    """What a vendor's source says of a detector.

    Attributes:
        arguments: from which `Vendor.build` makes the architecture without the source; plain values for YAML.
        num_classes: classes, background included.
        names: the name of each label; labels count from 1. Empty where the source names none.
    """

    arguments: Mapping[str, Any]
    num_classes: int
    names: Mapping[int, str] = field(default_factory=dict)


class Vendor(Protocol):
    """What the module of a library gives. The library is imported with it, when a detector is named."""

    def describe(self, source: str, arguments: Mapping[str, Any]) -> Description:
        """Reads a source, which is what a user wrote behind the colon.

        Args:
            source: a file, a folder or a name.
            arguments: of the user (``model_arguments``), or those of an earlier description: then the source
                need not exist any more.

        Raises:
            ModelError: there is no such source, it is of another kind or task, or it can't be read safely.
        """
        ...

    def read_weights(self, path: Path) -> Any:
        """The tensors of the library's files, or of any other checkpoint, without running code of them.

        Returns:
            The tree of dicts that `checkpoints.state_dicts.state_for` searches for the vendor's own names.

        Raises:
            ModelError: it can't be read safely.
        """
        ...

    def build(self, arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
        """Builds a detector with fresh weights on the CPU, from the arguments of a description.

        A `VendorDetector`, or a detector of torchvision's own classes.

        Raises:
            ModelError: an argument is wrong.
        """
        ...


@dataclass(frozen=True)
class Library:
    """A library whose detectors can be named.

    Attributes:
        library: its name, which is that of its extra, too.
        example: a detector of it.
        installed: whether it can be imported.
        install: the command that installs it.
    """

    library: str
    example: str
    installed: bool
    install: str


def libraries() -> list[Library]:
    """The libraries of `VENDORS`; none is imported."""
    return [
        Library(name, example, importlib.util.find_spec(name) is not None, _install(name))
        for name, example in VENDORS.items()
    ]


def _install(library: str) -> str:
    return f"pip install 'autoprune[{library}]'"


def vendor_of(name: str) -> tuple[Vendor, str]:
    """The module of a library and the source that a model's name holds.

    Raises:
        ModelError: the library is not installed, or the name holds no source.
    """
    library, _, source = name.partition(":")
    if not source:
        raise ModelError(f"model {name!r} names no detector; give one such as {VENDORS[library]}")
    try:
        module = importlib.import_module(f"autoprune.vendors.{library}")
    except ImportError as error:
        missing = f" ({error})" if not isinstance(error, ModuleNotFoundError) or error.name != library else ""
        raise ModelError(f"model {name}: {library} is not installed{missing}; {_install(library)}") from error
    return cast(Vendor, module), source
