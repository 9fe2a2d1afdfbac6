"""The libraries whose detectors autoprune takes, and what each module of them gives."""

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

from torch import nn

from autoprune.errors import AutopruneError, ModelError, out_of_memory
from autoprune.fields import VENDORS

TESTED = {"ultralytics": "8.4", "transformers": "5.24", "libreyolo": "1.6", "timm": "1.0"}
"""The version of each library that its tests ran with; pyproject.toml has the least ones."""


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
        ModelError: the library is not installed, can't be imported or has another API, or the name holds no
            source.
    """
    library, _, source = name.partition(":")
    if not source:
        raise ModelError(f"model {name!r} names no detector; give one such as {VENDORS[library]}")
    try:
        module = importlib.import_module(f"autoprune.vendors.{library}")
    except (KeyboardInterrupt, AutopruneError):
        raise
    except BaseException as error:  # importing runs foreign code, which can raise anything
        raise ModelError(f"model {name}: {_import_problem(library, error)}") from error
    return cast(Vendor, module), source


def described(name: str, arguments: Mapping[str, Any]) -> tuple[Vendor, Description]:
    """The module of a library, and what it says of the detector that a model's name holds.

    Args:
        name: ``LIBRARY:SOURCE``.
        arguments: see `Vendor.describe`.

    Raises:
        ModelError: see `vendor_of` and `Vendor.describe`; or what they hold breaks the library's own code.
    """
    vendor, source = vendor_of(name)
    given = f" and model_arguments {', '.join(map(str, arguments))}" if arguments else ""
    with library_code(name, f"{source}{given}"):
        return vendor, vendor.describe(source, arguments)


@contextmanager
def library_code(name: str, check: str) -> Iterator[None]:
    """Makes one line of what a library raises that reads or builds what a user's file holds.

    Args:
        name: of the model.
        check: what the user is told to look at.

    Raises:
        ModelError: it raised anything but our own errors.
    """
    try:
        with out_of_memory(f"while building {name}", "free some, or give a smaller detector", ModelError):
            yield
    except (KeyboardInterrupt, AutopruneError):
        raise
    except BaseException as error:
        raise ModelError(f"model {name} can't be made: {_one_line(error)}; check {check}") from error


def _import_problem(library: str, error: BaseException) -> str:
    """Whether a library is not there, is broken, or is another version than is tested; and what to do."""
    if isinstance(error, ModuleNotFoundError) and importlib.util.find_spec(library) is None:
        return f"{library} is not installed; {_install(library)}"
    root = error
    while root.__cause__ is not None:  # a library that imports its parts late wraps what went wrong
        root = root.__cause__
    missing = isinstance(root, ImportError) and f"{root.name}.".startswith(f"{library}.")
    ours = isinstance(root, ImportError | AttributeError) and _raised_here(root.__traceback__)
    if missing or ours:  # a name is not where it was
        return (
            f"{library} {_version(library)} has another API than {TESTED[library]}, which is tested "
            f"({_one_line(root)}); pip install '{library}=={TESTED[library]}.*'"
        )
    return (
        f"{library} {_version(library)} can't be imported ({_one_line(root)}); install what it lacks, or "
        f"reinstall it: pip install --force-reinstall {library}"
    )


def _raised_here(traceback: TracebackType | None) -> bool:
    """Whether an error comes from a module of this folder, rather than from within a library."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    return Path(traceback.tb_frame.f_code.co_filename).parent == Path(__file__).parent


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "(without a version)"
