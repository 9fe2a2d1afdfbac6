"""Reading and writing files: YAML in and out, and writes that leave the old file or the new one."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from autoprune.errors import ConfigError, RunError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it takes a tenth of the time


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that takes its place when the block ends without an error.

    Raises:
        RunError: the disk is full, or the folder can't be written to.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        os.chmod(temporary, 0o644)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where measurements are kept that other runs can use; it need not exist.

    ``AUTOPRUNE_CACHE``, else ``autoprune`` in ``XDG_CACHE_HOME`` or ``~/.cache``; of a user without a home,
    in the system's folder for temporary files.
    """
    if own := os.environ.get("AUTOPRUNE_CACHE"):
        return Path(own).expanduser()
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # neither HOME nor an entry among the system's users
        base = Path(tempfile.gettempdir())
    return base / "autoprune"


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: Path, content: Any, header: str = "") -> None:
    """Writes ``content`` as YAML in the order given, below ``header`` (comment lines)."""
    write_text(path, header + yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True))


def inline_yaml(content: dict[str, Any]) -> str:
    """Writes a mapping as YAML in one line: ``{size: 64, mode: fast}``."""
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=True, width=1_000_000).strip()


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Raises:
        ConfigError: the file is missing or is not YAML.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {problem}; mend it there") from error


def unwritable(path: Path, error: OSError) -> RunError:
    """Says in one line why ``path`` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the disk is full: {path} was not written; free some space and run the same command")
    return RunError(f"cannot write {path}: {error.strerror}; choose another folder or mend its permissions")
