"""Finds a model's weights among the tensors of a checkpoint, under whatever wrappers and prefixes."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoprune.detectors.stand_ins import Array
from autoprune.errors import ModelError
from autoprune.progress import say

State = dict[str, Tensor]

PREFERRED = (
    "model", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params", "detector",
    "student",
)  # fmt: skip
"""Of several sets of weights that fit, the first of these is taken; averages are taken by name alone."""
WRAPPERS = (*PREFERRED, "model_ema", "ema")
COMPILED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that wrappers of modules add, wherever they stand."""
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of names of tensors that no output depends on, though a model or a file may lack them."""
SHOWN = 5
"""Keys of each kind that a message shows."""


def is_counter(name: str) -> bool:
    """Whether a tensor of this name can be missing, or be too many."""
    return name.endswith(COUNTERS)


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


def state_for(model: Mapping[str, Tensor], content: Any, where: str, key: str | None = None) -> State:
    """The weights in a checkpoint that fit a model, or those that come nearest.

    They may lie in wrappers of any depth, and their names may begin with whatever all of them share. Of
    several that fit, `PREFERRED` decides, and one line says so; another names tensors that lie
    beside them and are not loaded.

    Args:
        model: the model's state dict.
        content: see `checkpoint.read_checkpoint`.
        where: its file, for messages.
        key: the wrapper to take, such as ``model_ema``, or a path to it, such as ``state.ema``.

    Returns:
        Tensors by the model's names, and under names that the model does not have those that lie with them;
        floating-point numbers are float32.

    Raises:
        ModelError: it holds no tensors, or not under ``key``; or several sets fit and none is preferred.
    """
    tensors = _Tensors(content)
    if not tensors.paths:
        raise ModelError(f"{where} holds no state dict; save model.state_dict() and give that with --weights")
    if key is not None:
        tensors.only(key, where)
    names = {_clean(name): name for name in model}
    fitting = tensors.fitting(names, model)
    own = _dotted_prefix(list(names))
    if own and not fitting:  # the model may be in a wrapper itself, which the file does not have
        bare = {name.removeprefix(own): full for name, full in names.items()}
        names = bare if (fitting := tensors.fitting(bare, model)) else names
    prefix = fitting[0] if fitting else tensors.nearest(names)
    if len(fitting) > 1:
        prefix = _choose(fitting, tensors, names, where, key)
    state, beside = tensors.below(prefix, names)
    for name, value in state.items():
        _check_dense(name, value, where)
    beside = [path for path in beside if not path.endswith((*COUNTERS, "n_averaged"))]
    if beside and len(fitting) == 1:
        listed = ", ".join(beside[:SHOWN]) + (f" and {len(beside) - SHOWN} more" if beside[SHOWN:] else "")
        say(f"{where}: the tensors under `{prefix.rstrip('.')}` are loaded; the others are not: {listed}")
    kinds = {value.dtype for value in state.values() if value.is_floating_point()} - {torch.float32}
    if kinds:
        shown = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        say(f"{where} holds {shown} numbers; they are loaded as float32")
    found = {names.get(name, name): _as_float32(value) for name, value in state.items()}
    for name, others in _tied(names, model).items():
        if name not in state and (other := next((each for each in others if each in state), None)):
            found[names[name]] = found[names[other]]
    return found


class _Tensors:
    """The tensors of a checkpoint by their paths: the keys on the way to each, with dots between them.

    Attributes:
        paths: path without `COMPILED` → tensor.
        holders: path → path of the dict that the tensor lies in; it ends with a dot, or is empty.
    """

    def __init__(self, content: Any) -> None:
        self.paths: dict[str, Tensor] = {}
        self.holders: dict[str, str] = {}
        for holder, name, tensor in _walk(content, "", ()):
            path = _clean(holder + name)
            path = holder + name if path in self.paths else path  # both exist: then they are not the same
            self.paths[path], self.holders[path] = tensor, _clean(holder)

    def only(self, key: str, where: str) -> None:
        """Drops all that is not below ``key``.

        Raises:
            ModelError: nothing is; names what there is.
        """
        sought = f".{key.strip('.')}."
        below = {path for path in self.paths if sought in f".{path}"}
        if not below:
            there = sorted({path.split(".")[0] for path in self.paths})
            listed = ", ".join(there[: 2 * SHOWN]) + (", …" if there[2 * SHOWN :] else "")
            raise ModelError(
                f"{where} holds no tensors under `{key}`, but under {listed}; give one of them with "
                "--weights-key (YAML: weights_key), or omit it"
            )
        self.paths = {path: tensor for path, tensor in self.paths.items() if path in below}

    def fitting(self, names: Mapping[str, str], model: Mapping[str, Tensor]) -> list[str]:
        """Prefixes under which all of a model's tensors lie; of one with two ``names`` either is enough."""
        needed, tied = {name for name in names if not is_counter(name)}, _tied(names, model)

        def there(prefix: str, name: str) -> bool:
            return any(prefix + each in self.paths for each in (name, *tied.get(name, ())))

        prefixes = [prefix for prefix, _ in self._votes(needed).most_common(50)]
        return [prefix for prefix in prefixes if all(there(prefix, name) for name in needed)]

    def nearest(self, names: Mapping[str, str]) -> str:
        """The prefix under which most of a model's tensors lie."""
        votes = self._votes({name for name in names if not is_counter(name)})
        return max(votes, key=lambda prefix: votes[prefix], default="")

    def _votes(self, names: Container[str]) -> Counter[str]:
        """For each prefix, how many of ``names`` follow it."""
        votes: Counter[str] = Counter()
        for path in self.paths:
            parts = path.split(".")
            for n in range(len(parts)):
                if ".".join(parts[n:]) in names:
                    votes[".".join([*parts[:n], ""]) if n else ""] += 1
        if not votes:  # perhaps a prefix that ends with no dot
            for holder in {*self.holders.values()}:
                inside = [path for path in self.paths if self.holders[path] == holder]
                prefix = inside[0][: _shared(inside)]
                if known := sum(path.removeprefix(prefix) in names for path in inside):
                    votes[prefix] = known
        return votes

    def below(self, prefix: str, names: Mapping[str, str]) -> tuple[State, list[str]]:
        """What lies in the same dicts as a model's tensors: all under ``prefix``, and paths of the others."""
        used = {self.holders[prefix + name] for name in names if prefix + name in self.paths}
        together = used or {Counter(self.holders.values()).most_common(1)[0][0]}
        paths = [path for path in self.paths if self.holders[path] in together]
        state = {path.removeprefix(prefix): self.paths[path] for path in paths if path.startswith(prefix)}
        return state, [path for path in paths if not path.startswith(prefix)]


def _choose(
    prefixes: Sequence[str], tensors: _Tensors, names: Mapping[str, str], where: str, key: str | None
) -> str:
    """The one of several prefixes under which a model's weights lie.

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
    common = _shared(split)
    ranks = {
        prefix: PREFERRED.index(parts[common])
        if parts[common] in PREFERRED
        else len(PREFERRED) * bool(parts[common])
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


def _shared(sequences: Sequence[Sequence[str]]) -> int:
    """How many items all sequences begin with alike."""
    first, last = min(sequences), max(sequences)  # type: ignore[type-var]
    pairs = enumerate(zip(first, last, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(last)))


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape and bool((one[name] == other[name]).all()) for name in one
    )


def _walk(content: Any, holder: str, above: tuple[int, ...]) -> Iterator[tuple[str, str, Tensor]]:
    """All tensors and arrays: path of the dict or list that holds each, its key there, the tensor."""
    if not isinstance(content, (Mapping, list, tuple)) or id(content) in above or len(above) > 100:
        return  # a file can hold a dict in itself
    for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        tensor = value.tensor() if isinstance(value, Array) else value
        if isinstance(tensor, Tensor):
            yield holder, str(name), tensor
        else:
            yield from _walk(value, f"{holder}{name}.", (*above, id(content)))


def _tied(names: Mapping[str, str], model: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each name of a tensor that has several, the others: safetensors stores it under one of them."""
    same: dict[tuple[object, ...], list[str]] = {}
    for name, full in names.items():
        tensor = model[full]
        if tensor.numel():
            same.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), []).append(name)
    return {name: [n for n in group if n != name] for group in same.values() if group[1:] for name in group}


def _dotted_prefix(names: Sequence[str]) -> str:
    """The parts that all names begin with, up to a dot."""
    return names[0][: _shared(names)].rpartition(".")[0] + "." if "." in names[0][: _shared(names)] else ""


def _clean(path: str) -> str:
    """A path without the parts that `COMPILED` modules add."""
    if not any(part in path for part in COMPILED):
        return path
    return ".".join(part for part in path.split(".") if part not in COMPILED)


def _all_start(names: Sequence[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _check_dense(name: Any, value: Tensor, where: str) -> None:
    if not isinstance(name, str) or value.is_meta or value.layout != torch.strided or value.is_quantized:
        raise ModelError(
            f"{where} is not a state dict: `{name}` is not a dense tensor with a name; "
            "save model.state_dict() of the float model"
        )


def _as_float32(value: Tensor) -> Tensor:
    value = value.detach()
    return value.float() if value.is_floating_point() else value
