"""Detectors of Transformers: ``transformers:FOLDER``, or the id of a model in the local cache of its hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from autoprune.checkpoints.parts import read_object
from autoprune.checkpoints.read import read_checkpoint
from autoprune.errors import ModelError
from autoprune.progress import say
from autoprune.vendors.table import Description, library_code
from autoprune.vendors.transformers_checks import check_precision
from autoprune.vendors.transformers_detector import TransformersDetector
from autoprune.vendors.transformers_families import (
    FAMILIES,
    configuration,
    family_of,
    feature_names,
    grid_of,
    names_of,
    plain_values,
    quiet,
)
from autoprune.vendors.transformers_files import CONFIG, PREPROCESSOR, folder_of, tensors_of
from autoprune.vendors.transformers_transform import preprocessing_of, transform_of, with_size
from autoprune.vendors.transformers_weights import translated

SIZES = ("size", "min_size", "max_size")
ARGUMENTS = ("config", "preprocessing", *SIZES)


def describe(source: str, arguments: Mapping[str, Any]) -> Description:
    """Reads the architecture and the preprocessing, from ``arguments`` where they hold a config.

    Args:
        source: a folder with ``config.json``, or an id such as ``PekingU/rtdetr_r18vd`` in the local cache.
        arguments: ``size``, ``min_size`` and ``max_size`` set another input size; ``config`` and
            ``preprocessing`` are what the two files of a folder hold, instead of these.

    Raises:
        ModelError: see `folder_of`, `configuration` and `preprocessing_of`; or an argument is unknown.
    """
    if unknown := [name for name in arguments if name not in ARGUMENTS]:
        raise ModelError(
            f"model_arguments: no `{unknown[0]}` for transformers; valid: {', '.join(ARGUMENTS)}"
        )
    config: Any = arguments.get("config")
    assumed = False
    given: Any = arguments.get("preprocessing")
    where, where_given = "model_arguments: config", "model_arguments: preprocessing"
    if "config" not in arguments:
        folder = folder_of(source)
        where = str(folder / CONFIG)
        config = read_object(folder / CONFIG)
        if given is None and (folder / PREPROCESSOR).is_file():
            where_given = str(folder / PREPROCESSOR)
            given = read_object(folder / PREPROCESSOR)
        assumed = given is None and not any(name in arguments for name in SIZES)
    given = {} if given is None else given
    for name, value in (("config", config), ("preprocessing", given)):
        if not isinstance(value, Mapping):
            raise ModelError(f"model_arguments: `{name}` must be a mapping, not {value!r}")
    made = configuration(config, where)
    settings = preprocessing_of(given, family_of(config, where), where_given)
    sizes = {name: arguments[name] for name in SIZES if name in arguments}
    complete = {"config": plain_values(made), "preprocessing": with_size(settings, sizes)}
    if assumed:
        shown = ", ".join(f"{name} {value}" for name, value in settings["size"].items())
        say(
            f"{source} has no {PREPROCESSOR}: images are brought to the library's own size ({shown}); give "
            "--model-arguments '{\"size\": 640}' for another one"
        )
    return Description(complete, int(made.num_labels) + 1, names_of(made))


def read_weights(path: Path) -> Any:
    """The tensors of a folder by the names of the installed version, or those of a file as they are.

    Raises:
        ModelError: they can't be read safely, are quantized, or do not fit the folder's config.
    """
    if path.is_file():
        return read_checkpoint(path)
    folder = folder_of(str(path))
    where = str(folder / CONFIG)
    given = read_object(folder / CONFIG)
    check_precision(given, where)
    config = configuration(given, where)
    kind = getattr(transformers, FAMILIES[config.model_type].model)
    tensors = tensors_of(folder)
    with library_code(f"transformers:{path}", where):
        return translated(kind, config, tensors, f"{folder} are not those of its {CONFIG}")


def build(arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """A `TransformersDetector` with fresh weights.

    Args:
        arguments: of a `Description`.
        num_classes: background included.

    Raises:
        ModelError: an argument is wrong.
    """
    config = configuration(arguments["config"], "model_arguments: config")
    if config.num_labels != num_classes - 1:
        config.num_labels = num_classes - 1
    family = FAMILIES[config.model_type]
    with quiet():
        model = getattr(transformers, family.model)(config)
    features = feature_names(family, [name for name, _ in model.named_modules()])
    transform = transform_of(arguments["preprocessing"])
    return TransformersDetector(
        model.float(), transform, features, family.select, grid_of(config), family.masked
    )
