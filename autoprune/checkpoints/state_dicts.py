"""Finds a model's weights among the tensors of a checkpoint, under whatever wrappers and prefixes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoprune.checkpoints.prefixes import (
    COMPILED,
    COUNTERS,
    CheckpointTensors,
    State,
    dotted_prefix,
    shared_length,
    tied_names,
    without_wrappers,
)
from autoprune.checkpoints.quantized import refuse_quantized
from autoprune.errors import ModelError
from autoprune.progress import say

PREFERRED = (
    "model", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params", "detector",
    "student",
)  # fmt: skip
"""Of several sets of weights that fit, the first of these is taken; averages are taken by name alone."""
AVERAGES = ("ema", "ema_state_dict", "params_ema", "ema_net", "model_ema")
"""Averages over the steps of a training, which come before all others where they are asked for."""
WRAPPERS = (*PREFERRED, "model_ema", "ema")
SHOWN = 5
"""Keys of each kind that a message shows."""


def plain_state(content: Any, where: str) -> State:
    """The state dict of a checkpoint whose model is not known: out of `WRAPPERS`, without their prefixes.

    Args:
        content: see `checkpoint.read_checkpoint`.
        where: its file, for messages.

    Returns:
        Its tensors; floating-point numbers are float32.

    Raises:
        ModelError: it is no state dict, or holds more than tensors.
    """
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{where} holds no state dict; save model.state_dict() and give that with --weights")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{where} is not a state dict: `{name}` is not a tensor; save model.state_dict()"
            )
        _check_dense(name, value, where)
    names = list(content)
    while prefix := next(
        (p for p in ("module.", *(f"{c}." for c in COMPILED)) if _all_start(names, p)), None
    ):
        names = [name.removeprefix(prefix) for name in names]
    return {name: _as_float32(value) for name, value in zip(names, content.values(), strict=True)}


def state_for(
    model: Mapping[str, Tensor],
    content: Any,
    where: str,
    key: str | None = None,
    averages_first: bool = False,
) -> State:
    """The weights in a checkpoint that fit a model, or those that come nearest.

    They may lie in wrappers of any depth, and their names may begin with whatever all of them share. Of
    several that fit, `PREFERRED` decides, and one line says so; another names tensors beside them that are
    left out.

    Args:
        model: the model's state dict.
        content: see `checkpoint.read_checkpoint`.
        where: its file, for messages.
        key: the wrapper to take, such as ``model_ema``, or a path to it, such as ``state.ema``.
        averages_first: whether of several that fit `AVERAGES` come before `PREFERRED`.

    Returns:
        Tensors by the model's names, and under names that the model does not have those that lie with them;
        floating-point numbers are float32.

    Raises:
        ModelError: it holds no tensors, or not under ``key``; or several sets fit and none is preferred.
    """
    tensors = CheckpointTensors(content)
    if not tensors.paths:
        raise ModelError(f"{where} holds no state dict; save model.state_dict() and give that with --weights")
    if key is not None:
        tensors.only(key, where)
    names = {without_wrappers(name): name for name in model}
    fitting = tensors.fitting(names, model)
    own = dotted_prefix(list(names))
    if own and not fitting:  # the model may be in a wrapper itself, which the file does not have
        bare = {name.removeprefix(own): full for name, full in names.items()}
        names = bare if (fitting := tensors.fitting(bare, model)) else names
    prefix = fitting[0] if fitting else tensors.nearest(names)
    if len(fitting) > 1:
        order = ("", *AVERAGES, *PREFERRED) if averages_first else ("", *PREFERRED)
        prefix = _choose(fitting, tensors, names, where, key, order)
    state, beside = tensors.below(prefix, names)
    for name, value in state.items():
        _check_dense(name, value, where)
    beside = [path for path in beside if not path.endswith((*COUNTERS, "n_averaged"))]
    if beside and len(fitting) == 1:
        listed = ", ".join(beside[:SHOWN]) + (f" and {len(beside) - SHOWN} more" if beside[SHOWN:] else "")
        say(f"{where}: the tensors under `{prefix.rstrip('.')}` are loaded; the others are not: {listed}")
    if any(value.dtype == torch.float64 for value in state.values()):  # those with less are exact in float32
        say(f"{where} holds float64 numbers; they are rounded to float32")
    loaded = {names.get(name, name): _as_float32(value) for name, value in state.items()}
    for name, others in tied_names(names, model).items():
        if name not in state and (other := next((each for each in others if each in state), None)):
            loaded[names[name]] = loaded[names[other]]
    return loaded


def _choose(
    prefixes: Sequence[str],
    tensors: CheckpointTensors,
    names: Mapping[str, str],
    where: str,
    key: str | None,
    order_of_names: Sequence[str],
) -> str:
    """The one of several prefixes under which a model's weights lie, the first in an order of names.

    Raises:
        ModelError: none is preferred.
    """
    if key is not None and f"{key.strip('.')}." in prefixes:
        return f"{key.strip('.')}."
    first, *others = (
        {name: tensors.paths[prefix + name] for name in names if prefix + name in tensors.paths}
        for prefix in prefixes
    )
    if all(_equal(first, other) for other in others):
        return prefixes[0]
    split = [prefix.split(".") for prefix in prefixes]
    common = shared_length(split)
    ranks = {
        prefix: order_of_names.index(name)
        if (name := parts[common]) in order_of_names
        else len(order_of_names)
        for prefix, parts in zip(prefixes, split, strict=True)
    }
    order = sorted(prefixes, key=lambda prefix: (ranks[prefix], prefix))
    # The part in which they differ is enough to name them.
    keys = {
        prefix: ".".join(parts[: common + 1]).rstrip(".")
        for prefix, parts in zip(prefixes, split, strict=True)
    }
    shown = [f"`{keys[prefix]}`" if prefix else "the outermost level" for prefix in order]
    listed = ", ".join(shown[:-1]) + f" and {shown[-1]}"
    if ranks[order[0]] == ranks[order[1]]:
        raise ModelError(
            f"{where} holds several sets of weights that fit, {listed}; choose one with --weights-key "
            f"{keys[order[0]]} (YAML: weights_key)"
        )
    say(f"{where} holds {listed}: {shown[0]} is taken; --weights-key {keys[order[1]]} takes another")
    return order[0]


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape
        and _is_dense(one[name])
        and _is_dense(other[name])
        and bool((one[name] == other[name]).all())
        for name in one
    )


def _all_start(names: Sequence[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _is_dense(value: Tensor) -> bool:
    return not value.is_meta and value.layout == torch.strided and not value.is_quantized


def _check_dense(name: Any, value: Tensor, where: str) -> None:
    if not isinstance(name, str) or not _is_dense(value):
        raise ModelError(
            f"{where} is not a state dict: `{name}` is not a dense tensor with a name; "
            "save model.state_dict() of the float model"
        )
    refuse_quantized(name, value, where)


def _as_float32(value: Tensor) -> Tensor:
    value = value.detach()
    return value.float() if value.is_floating_point() else value
