"""What resumed work takes from its beginning: settings that the user did not give are its own.

The same command has to resume what it began, also where a later version has other defaults.
"""

from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path

from pydantic import ValidationError

from autoprune.config import MAY_CHANGE, Config
from autoprune.errors import RunError
from autoprune.files import naming_paths
from autoprune.progress import say
from autoprune.run.directory import RunDirectory
from autoprune.training.checkpoint import recorded_run
from autoprune.training.settings import PRECISIONS, TrainSettings
from autoprune.validation import first_problem

DECIDING = tuple(name for name in Config.model_fields if name not in MAY_CHANGE)
"""The fields that decide what a search is; the others follow the command, or their defaults."""


@naming_paths()
def search_settings(config: Config, run: RunDirectory, given: Collection[str] | None = None) -> Config:
    """The settings to search with: those of ``config`` that were not given are the run's own, if it exists.

    Args:
        config: the user's settings.
        run: where the search writes.
        given: fields that the user gave; ``None`` takes all that ``config`` was made with.

    Raises:
        RunError: the run's own settings are damaged.
    """
    if not run.config_file.is_file():
        return config
    own = run.config()
    settings = _with_own(config, own, DECIDING, config.model_fields_set if given is None else given)
    # a name of a file stands for the weights in it, whoever gave it
    if settings.weights is None and own.weights is not None and own.model.partition(":")[2] == own.weights:
        settings = settings.model_copy(update={"weights": own.weights})
    return settings


@naming_paths()
def training_settings(config: Config, checkpoint: Path) -> Config:
    """The settings to train a baseline with: those that were not given are the checkpoint's, if it exists.

    Args:
        config: the user's settings.
        checkpoint: of `training.train`.

    Raises:
        RunError: the checkpoint is damaged.
    """
    if not (recorded := recorded_run(checkpoint)):
        return config
    names = {field.name for field in fields(TrainSettings)} & Config.model_fields.keys() & recorded.keys()
    values = {name: recorded[name] for name in names}
    bf16 = recorded.get("bf16")
    values["precision"] = next((name for name, value in PRECISIONS.items() if value is bf16), "auto")
    try:
        own = Config.model_validate(values)
    except ValidationError as error:
        problem = first_problem(error, Config, str(checkpoint))
        raise RunError(f"{problem}; delete the file to train from the start") from error
    return _with_own(config, own, sorted(values), config.model_fields_set)


def say_own(config: Config, resumed: Config, place: Path) -> None:
    """Names the settings of ``resumed`` that are not those of ``config``, for nobody gave them.

    Args:
        config: settings as the command and the defaults have them.
        resumed: what `search_settings` or `training_settings` made of them.
        place: where the work lies that is resumed.
    """
    now, own = config.model_dump(mode="json"), resumed.model_dump(mode="json")
    differing = [name for name in own if own[name] != now[name]]
    # a run writes down the labels that it found; they are no other setting than none
    if names := [name for name in differing if name != "labels"]:
        shown = ", ".join(f"{name} {own[name]!r}" for name in names)
        # not that it is resumed: the checkpoint, the detector or the data may yet refuse it
        say(f"{place} keeps its own {shown}; for other settings, choose another --out")


def _with_own(config: Config, own: Config, names: Iterable[str], given: Collection[str]) -> Config:
    return config.model_copy(update={name: getattr(own, name) for name in names if name not in given})
