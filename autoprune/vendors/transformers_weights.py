"""The tensors of files by the names of the installed version: the vendor saves some under earlier names."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.checkpoints.differences import kind_of, listed
from autoprune.checkpoints.prefixes import is_counter
from autoprune.errors import ModelError
from autoprune.vendors.transformers_families import quiet


def translated(kind: type[Any], config: Any, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state dict of a model of the class ``kind``, from a file's tensors.

    How many batches a norm saw may be missing, as no output depends on it, and is 0 then.

    Raises:
        ModelError: some are missing, unknown or of other shapes.
    """
    with quiet(), torch.random.fork_rng():
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    state: dict[str, Tensor] = model.state_dict()
    # Names of files may be earlier ones; the last part of a name stays.
    whole = {name.rpartition(".")[2] for name, value in state.items() if not value.is_floating_point()}
    missing, extra = (
        [name for name in report[part] if not is_counter(name)]
        for part in ("missing_keys", "unexpected_keys")
    )
    shapes = [(name, list(own), list(wanted)) for name, own, wanted in report["mismatched_keys"]]
    kinds = [
        (name, kind_of(value), "real")
        for name, value in sorted(tensors.items())
        if not value.is_floating_point() and name.rpartition(".")[2] not in whole
    ]
    if wrong := listed(missing, extra, shapes, kinds, [*map(str, report["error_msgs"])]):
        raise ModelError(f"the weights in {where}: {wrong}; take all files from one folder")
    left = {name: torch.zeros_like(state[name]) for name in report["missing_keys"]}  # the vendor sets none
    return {**state, **left}


def translated_for(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The same for a model as it is, perhaps pruned: of a config alone the vendor builds dense shapes."""
    made = vars(copy.deepcopy(model))
    kind: Any = type(model)

    def take(self: Any, *_: Any, **__: Any) -> None:
        vars(self).update(made)

    stand_in = type(kind.__name__, (kind,), {"__init__": take, "__module__": kind.__module__})
    return translated(stand_in, made["config"], tensors, where)
