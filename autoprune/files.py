"""Reading and writing files: YAML in and out, and atomic writes that leave the old file or the new one."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from autoprune.errors import ConfigError, RunError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that replaces it when the block ends without an error.

    Raises:
        RunError: the disk is full, or the folder is not writable.
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
    """The folder of measurements that later runs reuse; it may not exist yet.

    ``AUTOPRUNE_CACHE``, else ``autoprune`` in ``XDG_CACHE_HOME`` or ``~/.cache``; for a user without a home
    directory, in the system's folder for temporary files.
    """
    if configured := os.environ.get("AUTOPRUNE_CACHE"):
        return Path(configured).expanduser()
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # neither HOME nor an entry in the password database
        base = Path(tempfile.gettempdir())
    return base / "autoprune"


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically.

    Raises:
        RunError: the disk is full, or the folder is not writable.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: Path, content: Any, header: str = "") -> None:
    """Writes ``content`` as YAML in its own order, below ``header`` (comments); errors as `write_text`."""
    write_text(path, header + yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True))


def inline_yaml(content: dict[str, Any]) -> str:
    """Formats a mapping as YAML in one line: ``{size: 64, mode: fast}``."""
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=True, width=1_000_000).strip()


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Raises:
        ConfigError: the file is missing or is not YAML, or a mapping in it gives a key twice.
    """
    try:
        loader = _LOADER(path.read_text(encoding="utf-8"))
        try:
            document = loader.get_single_node()
            _refuse_duplicate_keys(document, path)
            return None if document is None else loader.construct_document(document)
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-13-01 is a ValueError
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {problem}; fix it there") from error


def _refuse_duplicate_keys(document: yaml.Node | None, path: Path) -> None:
    """YAML itself forbids them; the loader would take the last one.

    Raises:
        ConfigError: names the key and both lines.
    """
    nodes, seen = [document], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # an alias is the same node again
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            nodes.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                twice = f"`{key.value}` is given twice, first in line {lines[name]}"
                raise ConfigError(f"{path}, line {line}: {twice}; keep one")
            lines[name] = line


def unwritable(path: Path, error: OSError) -> RunError:
    """The error to raise, with one line that says why ``path`` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the disk is full: {path} was not written; free some space and run the same command")
    return RunError(f"cannot write {path}: {error.strerror}; choose another folder or fix its permissions")
