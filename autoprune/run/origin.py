"""Whether weights and data are those that a run was made from, wherever they lie now."""

from collections.abc import Mapping
from typing import Any

from autoprune.config import Config, DataPaths
from autoprune.errors import RunError
from autoprune.run.directory import RunDirectory, absolute
from autoprune.task.pruning_task import PruningTask


def check_origin(run: RunDirectory, identity: Mapping[str, str], task: PruningTask) -> None:
    """Refuses other weights or data than those of a run; their paths may have changed.

    Args:
        run: a run that was begun.
        identity: what its study has recorded; nothing where that holds nothing yet.
        task: detector and data as they are now.

    Raises:
        RunError: they differ, or the data has another path and version 0.1.0 did not record what it holds.
    """
    if not identity:
        return
    if identity["weights"] != task.weights_sha256[:16]:
        raise RunError(
            f"{task.config.weights} is not what {run.path} was made from; give the dense weights of that run "
            "(--weights, YAML: weights), or search again with another --out"
        )
    for split, fingerprint in task.data_identity.items():
        if identity.get(split, fingerprint) != fingerprint:
            raise RunError(
                f"the {split} in {_shown(task.config)} is not what {run.path} was made from; give the "
                "annotations and images of that run (--data, YAML: data), or search again with another --out"
            )
        if split not in identity and _places(task.config) != _places(begun := run.config()):
            raise RunError(
                f"{run.path} does not know what its {split} held, as version 0.1.0 did not record it; give "
                f"the data under its earlier path {_shown(begun)}, where a link will do"
            )


def _places(config: Config) -> Any:
    """Where the data lies, without the splits that a search does not read."""
    data = absolute(config).data
    return [getattr(data, name) for name in DataPaths.model_fields] if isinstance(data, DataPaths) else data


def _shown(config: Config) -> str:
    """The data's place in a message."""
    return str(config.data.train.annotations) if isinstance(config.data, DataPaths) else str(config.data)
