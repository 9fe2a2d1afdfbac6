"""The run directory: every file of one search, and whether it belongs to the search that is asked for."""

import csv
import errno
import io
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from autoprune.config import MAY_CHANGE, Config, DataPaths
from autoprune.errors import RunError
from autoprune.fields import is_vendor, source_of_vendor
from autoprune.files import naming_paths, refuse_dangling, unwritable, write_text, write_yaml
from autoprune.passwords import place_of
from autoprune.policy import Policy
from autoprune.run import lock, names
from autoprune.run.documents import load_run_config

KINDS = {
    names.CONFIG_FILE: "the run directory of a search",
    names.JOURNAL_FILE: "the run directory of a search",
    names.POLICY_FILE: "the folder of a pruned detector",
    names.WEIGHTS_FILE: "the folder of a detector",
    names.BASELINE_CHECKPOINT_FILE: "the folder of a training",
    "annotations": "a data set",
}
"""What a folder is, by a file in it."""


class RunDirectory:
    """Paths and files of one run.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / names.CONFIG_FILE
        self.space_file = path / names.SPACE_FILE
        self.journal_file = path / names.JOURNAL_FILE
        self.importance_file = path / names.IMPORTANCE_FILE
        self.curves_file = path / names.CURVES_FILE
        self.latency_file = path / names.LATENCY_MODEL_FILE
        self.proxy_check_file = path / names.PROXY_CHECK_FILE
        self.front_file = path / names.FRONT_FILE
        self.policies = path / names.POLICIES_FOLDER
        self.recovered = path / names.RECOVERED_FOLDER
        self.tensorboard = path / names.TENSORBOARD_FOLDER
        self._written: dict[int, Policy] = {}

    def policy_file(self, trial: int) -> Path:
        """Where the policy of a trial on the front is."""
        return self.policies / f"{names.TRIAL_NAME.format(trial)}.yaml"

    def latency_file_at(self, pixels: int) -> Path:
        """Where the latency model at a smaller input size is, by the pixels of the shorter side."""
        return self.latency_file.with_stem(f"{self.latency_file.stem}_{pixels}")

    def recovered_folder(self, trial: int) -> Path:
        """Where a recovered trial is."""
        return self.recovered / names.TRIAL_NAME.format(trial)

    # the settings

    @naming_paths()
    def config(self) -> Config:
        """The settings that the run was started with.

        Raises:
            RunError: it is not a run directory, or its settings are damaged.
        """
        self._check_kinds()
        if not self.config_file.is_file():
            if self.importance_file.is_file():
                raise RunError(
                    f"the search in {self.path} has no trials yet, as it was stopped at the scores of its "
                    "channels, or still computes them; the command that began it goes on"
                )
            raise RunError(
                f"{self.path} is not a run directory: it has no {names.CONFIG_FILE}; "
                "give the --out of a search"
            )
        return load_run_config(self.config_file, out=self.path)

    @naming_paths()
    def check(self, config: Config) -> None:
        """Refuses to resume with settings of another search.

        Raises:
            RunError: names the fields that differ, or the file of the detector, which is not there.
        """
        self._check_kinds()
        if not self.config_file.is_file():
            if self.journal_file.exists():
                raise RunError(f"{self.path} has a journal but no {names.CONFIG_FILE}; choose another --out")
            refuse_other_folder(self.path)
            return
        old, new = comparable(self.config()), comparable(config)
        _refuse_missing_source(self.path, old["model"], config.model)
        if differing := [name for name in old if old[name] != new[name]]:
            was, now = (absolute(each).model_dump(mode="json") for each in (self.config(), config))
            shown = ", ".join(f"{name} was {was[name]!r}, now {now[name]!r}" for name in differing)
            raise RunError(
                f"{self.path} is the run directory of another configuration: {shown}; choose another --out"
            )

    def check_study(self, begun: bool) -> None:
        """Refuses results whose study is lost: it could not be read, and a new one would not belong to them.

        Args:
            begun: whether the study holds trials.

        Raises:
            RunError: it does not, and there are results.
        """
        results = (self.front_file, *self.policies.glob("trial-*"), *self.recovered.glob("trial-*"))
        left = next((path for path in results if path.exists()), None)
        if left is not None and not begun:
            raise RunError(
                f"{self.path} holds results of a search ({left.relative_to(self.path)}), but its study is "
                "missing or empty; restore that from a copy, choose another --out, or delete the folder"
            )

    def has_journal(self) -> bool:
        """Whether the journal holds a line."""
        if not self.journal_file.exists():
            return False
        with self.journal_file.open("rb") as journal:
            return journal.readline().endswith(b"\n")

    def _check_kinds(self) -> None:
        """Refuses a folder in the place of a file, and the reverse.

        Raises:
            RunError: names it.
        """
        files = {self.config_file, self.space_file, self.journal_file, self.front_file}
        files |= {self.importance_file, self.curves_file, self.latency_file, self.proxy_check_file}
        for path in (self.path, self.policies, self.recovered, *sorted(files)):
            if path.exists() and path.is_dir() == (path in files):
                is_, wanted = ("a folder", "a file") if path in files else ("a file", "a folder")
                raise RunError(f"{path} is {is_}, not {wanted}; move it away, or give another run directory")

    def write_config(self, config: Config, notes: Mapping[str, Any]) -> None:
        """Writes `config.yaml` once: the settings in full, below ``notes`` (versions, hashes) as comments.

        What later commands change, such as the trials, is not written: those that only extend a run leave out
        the steps and paths that recoveries take from here.
        """
        if self.config_file.exists():
            return
        header = "# autoprune search: all settings that the run began with. The same command resumes it.\n"
        header += "".join(f"# {name}: {value}\n" for name, value in notes.items())
        write_yaml(self.config_file, absolute(config).model_dump(mode="json"), header)

    def megabytes(self) -> float:
        """Size of the directory on disk, in MB."""
        return sum(map(_size, self.path.rglob("*"))) / 1e6

    # who may write

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other drivers out of the directory inside the block, and creates the directory.

        Raises:
            RunError: another driver is running (names its host and process id).
        """
        return lock.locked(self.path, names.LOCK_FILE)

    def repair_journal(self) -> None:
        """Removes the unfinished last line of a killed driver, and its lock on the journal.

        Only for the owner of the lock, see `locked`.
        """
        Path(f"{self.journal_file}.lock").unlink(missing_ok=True)
        if not self.journal_file.exists():
            return
        with self.journal_file.open("rb+") as journal:
            content = journal.read()
            journal.truncate(content.rfind(b"\n") + 1)

    # the front

    def write_front(self, rows: Sequence[Mapping[str, Any]], policies: Mapping[int, Policy]) -> None:
        """Writes `front.csv` and the policies on the front, and removes those that are no longer on it.

        Args:
            rows: one mapping per trial on the front, all with the same keys.
            policies: trial number → policy, for each trial on the front.
        """
        for trial, policy in policies.items():
            file = self.policy_file(trial)
            if not file.exists() or self._written.get(trial) != policy:  # new, or re-evaluated
                policy.save(file)
                self._written[trial] = policy
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        if not self.front_file.exists() or self.front_file.read_bytes() != text.getvalue().encode():
            write_text(self.front_file, text.getvalue())
        current = {self.policy_file(trial) for trial in policies}
        for path in self.policies.glob("trial-*.yaml"):
            if path not in current:
                path.unlink()


def _size(path: Path) -> int:
    """Bytes of a file; none of a folder, or of what another process has removed meanwhile."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _refuse_missing_source(run: Path, began: str, now: str) -> None:
    """Refuses a detector's file that is not there, where the run began with a file of that name.

    Args:
        run: the run directory.
        began: the name of the detector, ``LIBRARY:FILE``, that the run began with.
        now: the one that is given now.

    Raises:
        RunError: says where the file was.
    """
    (library, _, before), (other, _, given) = began.partition(":"), now.partition(":")
    same = is_vendor(now) and library == other and Path(before).name == Path(given).name
    if not same or before == given or source_of_vendor(now) is not None:
        return
    where = "which is not there any more; restore it" if source_of_vendor(began) is None else "give that path"
    raise RunError(f"there is no file {given} from here, and {run} was made with {before}, {where}")


def check_writable(folder: Path) -> None:
    """Refuses a folder that can't be made or written, without making it.

    Raises:
        RunError: says why.
    """
    refuse_dangling(folder)
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        raise unwritable(folder, OSError(errno.ENOTDIR, f"{place} is not a folder"))
    if not os.access(place, os.W_OK | os.X_OK):
        raise unwritable(folder, OSError(errno.EACCES, f"{place} can't be written"))


def refuse_other_folder(folder: Path, own: Sequence[str] = ()) -> None:
    """Refuses to write into a folder that holds something else.

    Args:
        folder: it need not exist.
        own: the files of `KINDS` that may be there.

    Raises:
        RunError: says what the folder is.
    """
    for name, kind in KINDS.items():
        if name not in own and (folder / name).exists():
            raise RunError(f"{folder} is {kind} (it holds {name}); choose another --out (YAML: out)")


def absolute(config: Config) -> Config:
    """The same settings with absolute paths, which are valid in any working directory."""

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
    if config.weights is not None and Path(config.weights).expanduser().exists():
        changes["weights"] = str(resolved(Path(config.weights)))
    if (source := source_of_vendor(config.model)) is not None:
        changes["model"] = f"{config.model.partition(':')[0]}:{resolved(source)}"
    return config.model_copy(update=changes)


def comparable(config: Config) -> dict[str, Any]:
    """The fields that decide what the search is, as YAML holds them; a storage without its password."""
    content = absolute(config).model_dump(mode="json")
    if config.storage is not None:
        content["storage"] = place_of(config.storage)
    return {name: value for name, value in content.items() if name not in MAY_CHANGE}
