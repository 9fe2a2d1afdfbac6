"""The run directory: everything one search wrote, who may write to it, and whether it is of this search."""

import contextlib
import csv
import fcntl
import io
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoprune.config import MAY_CHANGE, Config, DataPaths, load_config
from autoprune.errors import RunError
from autoprune.files import unwritable, write_text, write_yaml
from autoprune.policy import Policy

# What a recovery leaves in its folder, beside the detector.
METRICS_FILE = "metrics.json"
LOSSES_FILE = "losses.csv"
LATENCY_FILE = "latency.json"

LATENCY_MODEL_FILE = "latency_model.json"  # of the run, not of a detector


class RunDirectory:
    """Paths and files of one run.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        """Names the files; touches nothing."""
        self.path = path
        self.config_file = path / "config.yaml"
        self.space_file = path / "space.yaml"
        self.journal_file = path / "study.journal"
        self.importance_file = path / "importance.safetensors"
        self.latency_file = path / LATENCY_MODEL_FILE
        self.front_file = path / "front.csv"
        self.policies = path / "policies"
        self.recovered = path / "recovered"
        self._lock_file = path / ".lock"
        self._written: dict[int, Policy] = {}

    def policy_file(self, trial: int) -> Path:
        """Where the policy of a trial on the front is."""
        return self.policies / f"trial-{trial:04d}.yaml"

    def recovered_folder(self, trial: int) -> Path:
        """Where a recovered trial is."""
        return self.recovered / f"trial-{trial:04d}"

    # what was asked

    def config(self) -> Config:
        """The settings that the run was started with.

        Raises:
            RunError: the directory is no run.
        """
        if not self.config_file.is_file():
            raise RunError(
                f"{self.path} is not a run directory: it has no config.yaml; give the --out of a search"
            )
        return load_config(self.config_file, out=self.path)

    def check(self, config: Config) -> None:
        """Refuses to go on with settings that would make another search.

        Raises:
            RunError: names the fields that differ.
        """
        if not self.config_file.is_file():
            if self.journal_file.exists():
                raise RunError(f"{self.path} has a journal but no config.yaml; choose another --out")
            return
        old, new = _comparable(self.config()), _comparable(config)
        if differing := [name for name in old if old[name] != new[name]]:
            shown = ", ".join(f"{name} was {old[name]!r}, now {new[name]!r}" for name in differing)
            raise RunError(
                f"{self.path} is the run directory of another configuration: {shown}; choose another --out"
            )

    def write_config(self, config: Config, notes: Mapping[str, Any]) -> None:
        """Writes `config.yaml` once: the settings in full, below ``notes`` (versions, hashes) as comments."""
        if self.config_file.exists():
            return
        header = "# autoprune search: what was asked, in full. The same command resumes the run.\n"
        header += "".join(f"# {name}: {value}\n" for name, value in notes.items())
        write_yaml(self.config_file, absolute(config).model_dump(mode="json"), header)

    def megabytes(self) -> float:
        """What the directory takes on disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file()) / 1e6

    # who writes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other drivers out of the directory inside the block, and makes the directory.

        The lock is the operating system's (`flock`), so that of a driver that was killed is free at
        once; host and pid in the file are for the message.

        Raises:
            RunError: another driver is at work on this run (names its host and pid).
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = self._lock()
        except BlockingIOError as error:
            raise RunError(
                f"{self.path} is in use by another driver ({self._owner()}); wait for it, stop it, "
                "or choose another --out"
            ) from error
        except OSError as error:
            raise unwritable(self._lock_file, error) from error
        try:
            yield
        finally:
            self._lock_file.unlink(missing_ok=True)
            os.close(handle)
            with contextlib.suppress(OSError):  # where nothing was written, leave nothing behind
                for folder in made:
                    folder.rmdir()

    def _lock(self) -> int:
        while True:
            handle = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between open and flock its last owner may have removed the file: then try again.
                if self._lock_file.exists() and os.path.samestat(os.fstat(handle), self._lock_file.stat()):
                    owner = {"host": socket.gethostname(), "pid": os.getpid()}
                    os.ftruncate(handle, 0)
                    os.write(handle, json.dumps(owner).encode())
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    def _owner(self) -> str:
        try:
            owner = json.loads(self._lock_file.read_text())
            return f"host {owner['host']}, pid {owner['pid']}"
        except (OSError, ValueError, KeyError):
            return "its host and pid are not known yet"

    def repair_journal(self) -> None:
        """Cuts off the line that a killed driver left unfinished, and frees its lock on the journal.

        To be called by the owner of `locked` only.
        """
        Path(f"{self.journal_file}.lock").unlink(missing_ok=True)
        if not self.journal_file.exists():
            return
        with self.journal_file.open("rb+") as journal:
            content = journal.read()
            journal.truncate(content.rfind(b"\n") + 1)

    # what came out

    def write_front(self, rows: Sequence[Mapping[str, Any]], policies: Mapping[int, Policy]) -> None:
        """Writes `front.csv` and the policies on the front, and removes those that left it.

        Args:
            rows: one mapping a trial on the front, all with the same keys.
            policies: trial number → policy, for each trial on the front.
        """
        for trial, policy in policies.items():
            file = self.policy_file(trial)
            if not file.exists() or self._written.get(trial) != policy:  # new, or measured again
                policy.save(file)
                self._written[trial] = policy
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        if not self.front_file.exists() or self.front_file.read_text(encoding="utf-8") != text.getvalue():
            write_text(self.front_file, text.getvalue())
        wanted = {self.policy_file(trial) for trial in policies}
        for path in self.policies.glob("trial-*.yaml"):
            if path not in wanted:
                path.unlink()


def absolute(config: Config) -> Config:
    """The same settings with paths that hold in any working directory."""

    def resolved(path: Path) -> Path:
        return path.expanduser().resolve()

    changes: dict[str, Any] = {"out": resolved(config.out)}
    if isinstance(config.data, DataPaths):
        splits = {
            name: paths.model_copy(
                update={"annotations": resolved(paths.annotations), "images": resolved(paths.images)}
            )
            for name, paths in config.data
        }
        changes["data"] = config.data.model_copy(update=splits)
    else:
        changes["data"] = resolved(config.data)
    if config.space is not None:
        changes["space"] = resolved(config.space)
    if config.weights is not None and Path(config.weights).expanduser().is_file():
        changes["weights"] = str(resolved(Path(config.weights)))
    return config.model_copy(update=changes)


def _comparable(config: Config) -> dict[str, Any]:
    """The fields that decide what the search is, as they stand in YAML."""
    content = absolute(config).model_dump(mode="json")
    return {name: value for name, value in content.items() if name not in MAY_CHANGE}
