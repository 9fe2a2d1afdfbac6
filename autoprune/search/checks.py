"""What a search refuses before it writes: checks of its settings, run directory, detector and data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from autoprune.config import Config, load_config, make_config
from autoprune.data.evaluate import check_boxes
from autoprune.data.racing import LEAST, RaceOrder
from autoprune.errors import ConfigError, RunError
from autoprune.passwords import MASK, has_password
from autoprune.progress import say
from autoprune.run.directory import RunDirectory
from autoprune.run.documents import warn_elsewhere
from autoprune.run.origin import check_origin, check_settings
from autoprune.run.results import recorded_notes
from autoprune.run.resume import say_own, search_settings
from autoprune.runtimes.sessions import need_runtime
from autoprune.search.make_plan import check_budgets
from autoprune.search.wall_time import WallTime
from autoprune.space.file import SpaceFile
from autoprune.task.checks import check_batch_size, refuse_missing, with_space
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.task.training_start import check_trainable
from autoprune.trust import consent
from autoprune.validation import as_path


class Checked(NamedTuple):
    """The settings of a search that can begin or resume, as far as can be said without loading anything.

    Attributes:
        config: the settings, those of the run where it exists and they were not given.
        run: where the search writes.
        file: the user's search space, if any.
    """

    config: Config
    run: RunDirectory
    file: SpaceFile | None


class Loaded(NamedTuple):
    """What a search begins or resumes with, after all checks.

    Attributes:
        task: detector and data, whose settings name the labels.
        file: the space of the run, if it has one.
        notes: of its study, see `results.recorded_notes`; none of a new run.
    """

    task: PruningTask
    file: SpaceFile | None
    notes: Mapping[str, Any]


def check(config: Config | Mapping[str, Any] | str | Path) -> Checked:
    """Refuses what can be refused before detector and data are loaded; see `search` for the errors."""
    config = _as_config(config)
    consent(config.model)
    file = None if config.space is None else SpaceFile.load(config.space)
    _check_empty_blocks(config, file)
    run = RunDirectory(config.out)
    open_settings, given = with_space(config, file), config.model_fields_set
    config = search_settings(open_settings, run, given)
    run.check(config)
    say_own(open_settings, config, run.path)
    if run.config_file.is_file() and has_password(run.config().storage or ""):
        say(f"{run.config_file} holds a password, which an earlier version wrote; replace it by {MASK}")
    if config.storage is None:
        run.check_study(run.has_journal())
    refuse_missing(config)
    need_runtime(config.latency_runtime)
    return Checked(config, run, file)


def _check_empty_blocks(config: Config, file: SpaceFile | None) -> None:
    """Refuses `empty_blocks` beside a search space in which no block may go, so it would do nothing.

    Where one may, both ask for the same: one file of settings serves `autoprune space` and the search of it.

    Raises:
        ConfigError: names the file and what to write.
    """
    if config.empty_blocks and file is not None and not file.has_empty_blocks:
        raise ConfigError(
            f"empty_blocks does nothing with {config.space}, where no group has max_ratio: 1.0; write that "
            "for groups that may go, or give --no-empty-blocks (YAML: empty_blocks: false)"
        )


def load_checked(
    config: Config, run: RunDirectory, file: SpaceFile | None, wall_time: WallTime, accept_data_change: bool
) -> Loaded:
    """Loads detector and data and makes all checks that need them, before the first file of the run."""
    recorded_labels = run.config_file.exists() and config.labels is not None  # checked when it began
    notes = recorded_notes(config, run) if run.config_file.exists() else {}
    if notes:
        check_settings(run, notes)
    # load the detector and the data, find the channel groups
    with wall_time.spend("loading"):
        task = load_task(config)
    if not run.config_file.exists():  # version 0.1.0 began runs with larger batches
        check_batch_size(config.batch_size, len(task.train))
    check_origin(run, notes, task, accept_data_change)
    check_boxes(task.train)
    check_boxes(task.val, config.proxy_images)
    say(task.train.labels_line)
    if config.racing and RaceOrder.make(task.proxy_images, config.batch_size, config.seed) is None:
        say(
            f"--racing stops no evaluation here: {task.proxy_images} images are too few, two parts of at "
            f"least {LEAST} and of whole batches are needed"
        )
    if not recorded_labels:
        with wall_time.spend("dense_evaluation"):
            task.check_labels(config.proxy_images, must_find=True)
    if not run.config_file.exists():  # runs of version 0.1.0 go on without
        config = config.model_copy(update={"labels": task.labels})
        task = replace(task, config=config)
    check_trainable(task)
    file = _space_of_run(run, file, config)
    check_budgets(config, file, task)
    return Loaded(task, file, notes)


def _space_of_run(run: RunDirectory, file: SpaceFile | None, config: Config) -> SpaceFile | None:
    """The space that the run was begun with; that of the settings, if any, where it is new.

    Raises:
        RunError: the two differ in what the user's file holds.
    """
    if not (run.config_file.exists() and run.space_file.exists()):
        if file is None and config.space is not None:  # the run's own settings name it
            file = SpaceFile.load(config.space)
        return None if file is None else file.model_copy(update={"criterion": config.criterion})
    written = SpaceFile.load(run.space_file)
    if file is not None and any(getattr(file, n) != getattr(written, n) for n in file.model_fields_set):
        raise RunError(f"{run.space_file} differs from {config.space}; choose another --out")
    return written


def _as_config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    if isinstance(config, Config):
        return config
    if isinstance(config, Mapping):
        return make_config(**{str(key): value for key, value in config.items()})
    file = as_path("config", config, "settings as a dict, or the path of a YAML file")
    loaded = load_config(file)
    warn_elsewhere(file, loaded.out)
    return loaded
