"""Reading and writing files: YAML in and out, and atomic writes that leave the old file or the new one."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from autoprune import unfinished
from autoprune.errors import AutopruneError, ConfigError, ResumableError, RunError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that replaces it when the block ends without an error.

    A link stays one: the file that it names is replaced.

    Raises:
        RunError: the disk is full, the folder is not writable, or ``path`` is no regular file.
    """
    temporary: Path | None = None
    try:
        target = replaceable(path)
        refuse_dangling(path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = unfinished.new_file(target.parent, target.name)
        mode = _usual_mode(temporary)
        with unfinished.locked(temporary):
            yield temporary
        os.chmod(temporary, mode)  # last, as a library may put a file of its own mode in its place
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _usual_mode(temporary: Path) -> int:
    """The mode that the user's umask gives to a new file; `mkstemp` gives another, for secrets."""
    temporary.unlink()
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return stat.S_IMODE(temporary.stat().st_mode)


def replaceable(path: Path) -> Path:
    """The file that writing to ``path`` replaces: ``path``, or what it is a link to.

    Raises:
        RunError: it is a folder, a device such as /dev/stdout, or a pipe, which a file must not replace.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not stat.S_ISREG(target.lstat().st_mode):
        kind = "folder" if target.is_dir() else "device, pipe or link"
        raise RunError(f"cannot write {path}: it is a {kind}, not a file; give another path")
    return target


NO_FILE = "No such file or directory"


def what_is_no_file(path: Path) -> str | None:
    """What a path leads to that is no file to read, such as a link to nothing; ``None`` for a file."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "it is a link that leads back to itself"
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return "it is a link to nothing" if os.path.islink(path) else NO_FILE
        return f"it can't be read ({error.strerror})"
    except ValueError:  # a name with a null character
        return NO_FILE
    if stat.S_ISREG(mode):
        return None
    return "it is a folder" if stat.S_ISDIR(mode) else "it is a device or pipe"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder of the same name that becomes ``path`` when the block ends without an error.

    Args:
        path: a folder that does not exist, or is empty.

    Raises:
        RunError: the disk is full, the folder is not writable, ``path`` is a link to nothing, or another
            process wrote it meanwhile.
    """
    temporary: Path | None = None
    refuse_dangling(path)
    path = Path(os.path.realpath(path))  # of `x/../y`, no `x` is made
    exists = path.is_dir()
    try:
        with _writing(path):
            place = next(folder for folder in (path, *path.parents) if folder.is_dir())
            temporary = unfinished.new_folder(place, path.name)
            folder = temporary / path.name
            folder.mkdir()
        try:
            with unfinished.locked(temporary):
                yield folder
        except AutopruneError as error:  # the user knows the folder by its own name alone
            raise type(error)(str(error).replace(str(folder), str(path))) from error
        with _writing(path):
            if path.is_dir() and not is_empty(path):
                raise RunError(
                    f"{path} was written by another process meanwhile, and is left as it is; choose another "
                    "folder"
                )
            if exists:  # it may be where a shell is, or a mount, which nothing can replace
                for entry in sorted(folder.iterdir()):
                    entry.replace(path / entry.name)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                folder.replace(path)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def is_empty(path: Path) -> bool:
    """Whether a path is a folder that holds nothing, but perhaps what is being written."""
    return path.is_dir() and all(map(unfinished.is_unfinished, path.iterdir()))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


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


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes ``content`` atomically; errors as `write_text`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


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
            _refuse_duplicate_keys(document, path, loader)
            return None if document is None else loader.construct_document(document)
        finally:
            loader.dispose()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-13-01 is a ValueError
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {problem}; fix it there") from error


def _refuse_duplicate_keys(document: yaml.Node | None, path: Path, loader: Any) -> None:
    """YAML itself forbids them; the loader would take the last one.

    Keys are the same where they are written alike, and where YAML reads the same value: yes, true.

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
        seen_keys: dict[Any, tuple[str, int]] = {}
        for key, value in node.value:
            nodes.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            same: set[Any] = {("written", key.value)}
            if not key.tag.endswith(":merge"):
                same.add(("read", loader.construct_object(key)))
            for first, first_line in (seen_keys[each] for each in same if each in seen_keys):
                written = "" if first == key.value else f" as `{first}`, which YAML reads as the same"
                twice = f"`{key.value}` is given twice, first in line {first_line}{written}"
                raise ConfigError(f"{path}, line {line}: {twice}; keep one")
            seen_keys.update(dict.fromkeys(same, (key.value, line)))


def refuse_dangling(path: Path) -> None:
    """Refuses a path that leads over a link to nothing, where no folder can be made.

    Raises:
        RunError: names the link and what it points to.
    """
    for place in (path, *path.parents):
        if os.path.islink(place) and not os.path.exists(place):
            raise RunError(
                f"cannot write {path}: {place} is a link to nothing ({os.readlink(place)}); remove the link, "
                "or give another path"
            )


def unwritable(path: Path, error: OSError) -> RunError:
    """The error to raise, with one line that says why ``path`` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResumableError(
            f"the disk is full: {path} was not written; free some space and run the same command"
        )
    if error.errno == errno.EFBIG:
        return RunError(
            f"cannot write {path}: it would be larger than a file may be here; raise the limit (`ulimit "
            "-f`), or choose a folder on another file system"
        )
    return RunError(f"cannot write {path}: {error.strerror}; choose another folder or fix its permissions")


@contextmanager
def naming_paths() -> Iterator[None]:
    """Names the path in one line where the operating system refuses one, as in a folder that can't be read.

    Errors without a path pass, such as that of a full standard output: their cause is not known here.

    Raises:
        RunError: see above.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        raise RunError(
            f"cannot use {error.filename}: {error.strerror}; check the path and its permissions"
        ) from error
