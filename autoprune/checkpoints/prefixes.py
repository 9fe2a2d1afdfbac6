"""The tensors of a checkpoint by their paths, and the prefixes under which those of a model lie."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from autoprune.checkpoints.stand_ins import Array
from autoprune.errors import ModelError

State = dict[str, Tensor]
"""Tensors by their names, as `torch.nn.Module.state_dict` gives them."""
COMPILED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that wrappers of modules add, wherever they stand."""
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Ends of names of tensors that no output depends on, though a model or a file may lack them."""
_SHOWN = 10  # names in a message


def is_counter(name: str) -> bool:
    """Whether a tensor of this name can be missing, or be too many."""
    return name.endswith(COUNTERS)


class CheckpointTensors:
    """The tensors of a checkpoint by their paths: the keys on the way to each, with dots between them.

    Attributes:
        paths: path without `COMPILED` → tensor.
        holders: path → path of the dict that the tensor lies in; it ends with a dot, or is empty.
    """

    def __init__(self, content: Any) -> None:
        self.paths: dict[str, Tensor] = {}
        self.holders: dict[str, str] = {}
        for holder, name, tensor in _walk(content, "", ()):
            path = without_wrappers(holder + name)
            path = holder + name if path in self.paths else path  # both exist: then they are not the same
            self.paths[path], self.holders[path] = tensor, without_wrappers(holder)

    def only(self, key: str, where: str) -> None:
        """Drops all that is not below ``key``.

        Raises:
            ModelError: nothing is; names what there is.
        """
        sought = f".{key.strip('.')}."
        below = {path for path in self.paths if sought in f".{path}"}
        if not below:
            tops = sorted({path.split(".")[0] for path in self.paths})
            listed = ", ".join(tops[:_SHOWN]) + (", …" if tops[_SHOWN:] else "")
            raise ModelError(
                f"{where} holds no tensors under `{key}`, but under {listed}; give one of them with "
                "--weights-key (YAML: weights_key), or omit it"
            )
        self.paths = {path: tensor for path, tensor in self.paths.items() if path in below}
        self.holders = {path: self.holders[path] for path in self.paths}

    def fitting(self, names: Mapping[str, str], model: Mapping[str, Tensor]) -> list[str]:
        """Prefixes under which all of a model's tensors lie; of one with two ``names`` either is enough."""
        needed, tied = {name for name in names if not is_counter(name)}, tied_names(names, model)

        def is_held(prefix: str, name: str) -> bool:
            return any(prefix + each in self.paths for each in (name, *tied.get(name, ())))

        prefixes = [prefix for prefix, _ in self._votes(needed).most_common(50)]
        return [prefix for prefix in prefixes if all(is_held(prefix, name) for name in needed)]

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
                prefix = inside[0][: shared_length(inside)]
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


def tied_names(names: Mapping[str, str], model: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each name of a tensor that has several, the others: safetensors stores it under one of them."""
    same: dict[tuple[object, ...], list[str]] = {}
    for name, full in names.items():
        tensor = model[full]
        place: object = tensor.data_ptr()
        if tensor.is_meta:  # which has no address
            place = tensor.untyped_storage()._cdata, tensor.storage_offset()
        if tensor.numel():
            same.setdefault((place, tensor.shape, tensor.stride(), tensor.dtype), []).append(name)
    return {name: [n for n in group if n != name] for group in same.values() if group[1:] for name in group}


def dotted_prefix(names: Sequence[str]) -> str:
    """The parts that all names begin with, up to a dot."""
    shared = names[0][: shared_length(names)] if names else ""
    return shared[: shared.rfind(".") + 1]


def without_wrappers(path: str) -> str:
    """A path without the parts that `COMPILED` modules add."""
    if not any(part in path for part in COMPILED):
        return path
    return ".".join(part for part in path.split(".") if part not in COMPILED)


def shared_length(sequences: Sequence[Sequence[str]]) -> int:
    """How many items all sequences begin with alike."""
    first, last = min(sequences), max(sequences)  # type: ignore[type-var]
    pairs = enumerate(zip(first, last, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(last)))
