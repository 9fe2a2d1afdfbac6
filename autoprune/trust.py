"""Consent to run the user's code: a factory that a file names runs only if the user has named it before.

A policy, a search space and a run directory can come from anyone, and ``package.module:function`` in them is
code to run. Readers of such files call `note_file`; the user's own words (a flag, a file given with
``--config``, an argument in Python) are `consent`; what imports a factory calls `require_consent` first.
"""

import os
import stat
import warnings
from pathlib import Path

from autoprune.errors import ModelError, RunError
from autoprune.fields import is_vendor
from autoprune.files import cache_folder, write_text

VARIABLE = "AUTOPRUNE_TRUST"
TRUSTED_FILE = "trusted_factories"

_files: dict[str, Path] = {}  # factory → the file that named it in this process
_consented: set[str] = set()


def note_file(name: str, path: Path) -> None:
    """Notes that a file that anyone may have written names a detector; only factories matter."""
    if is_factory(name):
        _files[name] = path


def consent(name: str) -> None:
    """Takes a detector's name from the user, and remembers a factory in the folder of `cache_folder`."""
    if not is_factory(name) or name in _consented:
        return
    _consented.add(name)
    if name in (known := _remembered()):
        return
    file = cache_folder() / TRUSTED_FILE
    try:
        write_text(file, "".join(f"{each}\n" for each in [*known, name]))
        file.chmod(0o600)  # `_remembered` believes no file that others can write, as some umasks let them
    except (RunError, OSError) as error:
        problem = f"{name} is not remembered, so later commands may ask for {VARIABLE}={name}: {error}"
        warnings.warn(problem, stacklevel=2)


def require_consent(name: str) -> None:
    """Refuses a factory that only a file has named; one that came from Python itself is consented to.

    Raises:
        ModelError: the user has not named it before, and `VARIABLE` doesn't hold it.
    """
    if name in os.environ.get(VARIABLE, "").replace(" ", "").split(","):
        return
    if name in _files and name not in _consented and name not in _remembered():
        raise ModelError(
            f"{_files[name]} names the factory {name}, code that you have not used here before; if you trust "
            f"it, set the environment variable {VARIABLE}={name}"
        )
    consent(name)


def is_factory(name: str) -> bool:
    """Whether a detector's name is ``package.module:function``, and not a vendor's ``LIBRARY:SOURCE``."""
    module, _, function = name.partition(":")
    plain = not any(mark.isspace() or mark == "," for mark in name)
    return bool(module and function) and plain and not is_vendor(name)


def _remembered() -> list[str]:
    """What the user has named before; the file is believed only if no other user can have written it."""
    try:
        with open(
            os.open(cache_folder() / TRUSTED_FILE, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8"
        ) as file:
            status = os.fstat(file.fileno())
            others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            return [] if others_write or status.st_uid != os.getuid() else file.read().split()
    except (OSError, UnicodeDecodeError):
        return []
