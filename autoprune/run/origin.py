"""Whether weights, data and settings are those that a run was made from, wherever they lie now."""

from collections.abc import Collection, Mapping
from typing import Any

from autoprune.config import Config, DataPaths
from autoprune.errors import RunError
from autoprune.progress import say
from autoprune.run.directory import RunDirectory, absolute, comparable
from autoprune.space.file import SpaceFile
from autoprune.task.pruning_task import PruningTask

SETTINGS_NOTE = "settings"
"""The study's attribute with the settings that its trials were made by; versions up to 0.1.0 wrote none."""

SCORING = ("criterion", "importance_images", "seed")
"""The settings that say which channels a trial keeps; the others that a run holds say how it is trained."""

_ELSEWHERE = {"space", "storage"}  # known by what they hold, wherever they lie


def settings_to_note(config: Config) -> dict[str, Any]:
    """The settings that decide what a trial is, for `SETTINGS_NOTE`."""
    return {name: value for name, value in comparable(config).items() if name not in _ELSEWHERE}


def check_settings(run: RunDirectory, notes: Mapping[str, Any], only: Collection[str] | None = None) -> None:
    """Refuses a run whose `config.yaml` was changed in what decides a trial.

    Args:
        run: a run that was begun.
        notes: of its study, as in `check_origin`; without `SETTINGS_NOTE` only the criterion is compared.
        only: the settings to compare; ``None`` takes all.

    Raises:
        RunError: names the setting, both its values and the file.
    """
    now, recorded = settings_to_note(run.config()), dict(notes.get(SETTINGS_NOTE, {}))
    if not recorded and run.space_file.exists():
        space = SpaceFile.load(run.space_file)
        recorded = {"criterion": space.criterion} if "criterion" in space.model_fields_set else {}
    for name, value in recorded.items():
        if (only is None or name in only) and name in now and now[name] != value:
            raise RunError(
                f"{run.config_file} says {name} {now[name]!r}, and the trials of the run are of "
                f"{name} {value!r}; restore that, or search with another --out"
            )


def check_origin(
    run: RunDirectory, notes: Mapping[str, Any], task: PruningTask, accept_data_change: bool = False
) -> None:
    """Refuses other weights or data than those of a run; their paths may have changed.

    Args:
        run: a run that was begun.
        notes: of its study, see `results.recorded_notes`; nothing where that holds nothing yet.
        task: detector and data as they are now.
        accept_data_change: say what changed in the data, rather than refuse it.

    Raises:
        RunError: they differ, or the data has another path and version 0.1.0 did not record what it holds.
    """
    if not (identity := notes.get("identity")):
        if accept_data_change:
            say(f"--accept-data-change does nothing: {run.path} has no trials yet")
        return
    if identity["weights"] != task.weights_sha256[:16]:
        raise RunError(
            f"{task.config.weights} is not what {run.path} was made from; give the dense weights of that run "
            "(--weights, YAML: weights), or search again with another --out"
        )
    if changes := data_changes(notes, task):
        what = f"the data in {_shown(task.config)} is not what {run.path} was made from: {changes}"
        if not accept_data_change:
            raise RunError(
                f"{what}; give that data (--data, YAML: data), search with another --out, or resume the "
                "search with --accept-data-change, which measures the dense detector again and sets the "
                "trials so far aside"
            )
        say(f"{what}; the dense detector is measured again, and the trials so far are set aside")
    if unknown := [split for split in task.data_identity if split not in identity]:
        what = f"{run.path} does not know what its {unknown[0]} held, as version 0.1.0 did not record it"
        if _places(task.config) != _places(begun := run.config()) and not accept_data_change:
            raise RunError(
                f"{what}; give the data under its earlier path {_shown(begun)}, where a link will do"
            )
        say(f"{what}: it can't be compared with the data in {_shown(task.config)}")
    elif accept_data_change and not changes:
        say(f"--accept-data-change does nothing: the data is that of {run.path}")


def data_changes(notes: Mapping[str, Any], task: PruningTask) -> str:
    """What changed in the data since the study recorded it, by split; empty where nothing did."""
    identity, recorded = notes.get("identity", {}), notes.get("data", {})
    return "; ".join(
        f"{split}: {_change(recorded.get(split, {}), task.data_counts[split])}"
        for split, fingerprint in task.data_identity.items()
        if identity.get(split, fingerprint) != fingerprint
    )


def _change(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Of one split: how many images and boxes there were and are."""
    differing = [name for name in now if before.get(name) != now[name]]
    if not differing:
        return f"other files, boxes or classes ({now['images']} images and {now['boxes']} boxes, as before)"
    return ", ".join(
        f"{before.get(name, 'an unknown number of')} {name} before, {now[name]} now" for name in differing
    )


def _places(config: Config) -> Any:
    """Where the data lies, without the splits that a search does not read."""
    data = absolute(config).data
    return [getattr(data, name) for name in DataPaths.model_fields] if isinstance(data, DataPaths) else data


def _shown(config: Config) -> str:
    """The data's place in a message."""
    return str(config.data.train.annotations) if isinstance(config.data, DataPaths) else str(config.data)
