"""Whether weights and data are those that a run was made from, wherever they lie now."""

from collections.abc import Mapping
from typing import Any

from autoprune.config import Config, DataPaths
from autoprune.errors import RunError
from autoprune.progress import say
from autoprune.run.directory import RunDirectory, absolute
from autoprune.task.pruning_task import PruningTask


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
