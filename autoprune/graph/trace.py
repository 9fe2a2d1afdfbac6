"""Runs a model once, eagerly, and lets the op rules see every aten op."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprune.errors import ModelError
from autoprune.graph.attention import heads_visible
from autoprune.graph.labels import Atoms, Axis, Facts
from autoprune.graph.rules import ALWAYS, RULES, Rule

# Proposals and detections let through when a model is run only to see all its layers.
_FEW = 16


# An op's name, its rule, whether that runs on unlabelled tensors too, whether torch can take the op apart,
# whether its results are no new memory.
Known: TypeAlias = tuple[str, Rule | None, bool, bool, bool]
# An op that ran: itself, the numbers it scaled by, the shapes of its results.
Step: TypeAlias = tuple[Any, tuple[float, ...], list[tuple[int, ...]]]


@dataclass(frozen=True)
class Leaf:
    """A parameter or buffer under its name in the state dict.

    Attributes:
        name: first name of the tensor; a shared one has others too.
        tensor: the tensor itself.
        axes: label of each axis.
    """

    name: str
    tensor: torch.Tensor
    axes: tuple[Axis, ...]


@dataclass
class Trace:
    """What one forward pass showed.

    Attributes:
        facts: all that the rules stated.
        leaves: the parameters and buffers, each once.
        unit: for each atom one that stands for its unit, once the facts are solved.
        lowered: whether detection thresholds had to be lowered to see all layers.
        features: for each direct child of the model, label and length of the channel axis of every 4-D
            tensor that it returned.
    """

    facts: Facts = field(default_factory=Facts)
    leaves: list[Leaf] = field(default_factory=list)
    unit: Atoms | None = None
    lowered: bool = False
    features: dict[str, list[tuple[Axis, int]]] = field(default_factory=dict)


class OpWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls ``saw`` after every aten op, with composite ones taken apart."""

    def __init__(  # noqa: D107
        self, saw: Callable[[Any, Known, tuple[Any, ...], dict[str, Any], Any], None]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._saw = saw
        self._known: dict[Any, Known] = {}

    def __torch_dispatch__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = self._known.get(func)
        if known is None:
            known = self._known[func] = _look_up(func)
        if known[3]:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if kwargs and any(True for _ in tensors_in(list(kwargs.values()))):
            args = _positional(func, args, kwargs)
        self._saw(func, known, args, kwargs, out)
        return out


def _apply_rule(
    facts: Facts, func: Any, known: Known, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> None:
    op, rule, always, _, reused = known
    tensors, outputs = list(tensors_in(args)), list(tensors_in((out,)))
    inputs = [facts.labels(tensor) for tensor in tensors]
    labelled = any(inputs)
    facts.seen.update(map(id, tensors))
    if rule is None or "out" in kwargs:
        if labelled:
            _give_up(facts, op, inputs)
    elif always or labelled:
        try:
            rule(facts, op, args, out)
        except Exception:
            # An op used in a way that its rule does not know must not stop the model.
            _give_up(facts, op, inputs)
    if labelled:
        for tensor, labels in zip(tensors, inputs, strict=True):
            if labels and tensor.numel() == 0:
                facts.empty.extend(axis for axis in labels.axes if axis is not None)
    if labelled or any(map(facts.derived, tensors)):
        for tensor in outputs:
            facts.derive(tensor)
    # Boxes scaled by image sizes, or by a number that depends on the data, say nothing about widths.
    factors = scalars_of(op, args)
    if factors and not (facts.derived(args[0]) and not any(map(facts.derived, tensors[1:]))):
        factors = ()
    if not reused:
        for tensor in outputs:
            facts.activation(tensor.element_size(), tensor)
    facts.steps.append((func, factors, [facts.axes(tensor) for tensor in outputs]))


def scalars_of(op: str, args: tuple[Any, ...]) -> tuple[float, ...]:
    """The numbers that an op scales a tensor by: they may have been computed from a width."""
    if op not in ("mul", "div") or not isinstance(args[0], torch.Tensor) or args[0].dim() == 0:
        return ()
    by = args[1]
    return (float(by),) if not isinstance(by, torch.Tensor) or by.dim() == 0 else ()


def _look_up(func: Any) -> Known:
    namespace, name = func._schema.name.split("::")
    mutates = func._schema.is_mutable
    op = name[:-1] if mutates and name.endswith("_") else name
    op = op if namespace == "aten" else f"{namespace}::{op}"
    composite = op not in RULES and func._can_decompose() if hasattr(func, "_can_decompose") else False
    return op, RULES.get(op), op in ALWAYS, composite, mutates or func.is_view


def _positional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments in the order of the op's schema, so that rules see tensors given by name."""
    rest = func._schema.arguments[len(args) :]
    return (*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest))


def tensors_in(args: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors among an op's arguments or results, in order."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from tensors_in(arg)


def _give_up(facts: Facts, op: str, inputs: Sequence[Any]) -> None:
    for labels in inputs:
        for axis in labels.axes if labels else ():
            facts.freeze(axis, f"goes into {op}, which has no rule for it")


def trace(model: nn.Module, example_inputs: Sequence[Any]) -> Trace:
    """Runs ``model(*example_inputs)`` in eval mode without gradients and records what happens to channels.

    The model is left as it was: training flags, buffers and random state are restored. A detector that
    finds nothing sends no elements through its last layers, and torch skips ops on none: it is run again
    with its thresholds lowered, and only costs are kept from the first run.

    Raises:
        ModelError: the model fails on the inputs, with its own error in the message.
    """
    with undisturbed(model):
        result = _run(model, example_inputs)
        if _hides_layers(result):
            plain = result.facts
            with _thresholds_lowered(model):
                result = _run(model, example_inputs, first_free=plain.size)
            for axis in result.facts.empty if _hides_layers(result) else ():
                result.facts.freeze(axis, "has no elements here; give an input that reaches all layers")
            result.lowered = True
            # Parameters have the same atoms in both runs, and nothing else of the first is in the second.
            result.facts.costs, result.facts.activations = plain.costs, plain.activations
    return result


def replay(
    model: nn.Module, example_inputs: Sequence[Any], lowered: bool
) -> tuple[list[Step], Exception | None]:
    """Runs a pruned model as `trace` ran the dense one; returns its ops, up to the error if there was one."""
    steps: list[Step] = []

    def saw(func: Any, known: Known, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        steps.append(
            (func, scalars_of(known[0], args), [tuple(tensor.shape) for tensor in tensors_in((out,))])
        )

    thresholds = _thresholds_lowered(model) if lowered else nullcontext()
    with undisturbed(model), thresholds, torch.no_grad():
        try:
            with OpWatcher(saw):
                model(*example_inputs)
        except Exception as error:
            return steps, error
    return steps, None


def retrace(model: nn.Module, example_inputs: Sequence[Any], lowered: bool) -> Trace:
    """Traces once, with thresholds as in an earlier trace."""
    thresholds = _thresholds_lowered(model) if lowered else nullcontext()
    with undisturbed(model), thresholds:
        return _run(model, example_inputs)


def _hides_layers(traced: Trace) -> bool:
    """Whether tensors without elements may be the reason why some parameters met no op."""
    return bool(traced.facts.empty) and any(
        id(leaf.tensor) not in traced.facts.seen
        for leaf in traced.leaves
        if any(a is not None for a in leaf.axes)
    )


def _run(model: nn.Module, example_inputs: Sequence[Any], first_free: int = 0) -> Trace:
    result = Trace()
    facts = result.facts
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            axes = facts.leaf(tensor).axes if tensor.is_floating_point() else (None,) * tensor.dim()
            result.leaves.append(Leaf(name, tensor, axes))
    facts.size = max(facts.size, first_free)
    with _children_watched(model, result), torch.no_grad():
        try:
            with OpWatcher(partial(_apply_rule, facts)):
                output = model(*example_inputs)
        except Exception as error:
            raise ModelError(_failure(model, example_inputs, error)) from error
    for tensor in tree_leaves(output):
        if isinstance(tensor, torch.Tensor):
            for axis in facts.axes(tensor):
                facts.freeze(axis, "is an output of the model")
    return result


@contextmanager
def _thresholds_lowered(model: nn.Module) -> Iterator[None]:
    """Lets every detection through, but few of them: modules' score thresholds and top-n limits."""
    before: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and "thresh" in name and ("score" in name or "conf" in name):
                lowered: Any = -1.0
            elif (
                isinstance(value, dict)
                and "top_n" in name
                and all(isinstance(n, int) for n in value.values())
            ):
                lowered = {key: min(n, _FEW) for key, n in value.items()}
            elif isinstance(value, int) and "detections_per" in name:
                lowered = min(value, _FEW)
            else:
                continue
            before.append((module, name, value))
            setattr(module, name, lowered)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, and everything as before after it."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), heads_visible(model):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, training in modes:
                module.training = training
            for buffer, version, before in buffers:
                if buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(before)


@contextmanager
def _children_watched(model: nn.Module, result: Trace) -> Iterator[None]:
    """Notes the channels of what the model's direct children return."""

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            maps = [x for x in tree_leaves(output) if isinstance(x, torch.Tensor) and x.dim() == 4]
            result.features.setdefault(name, [(result.facts.axes(x)[1], x.shape[1]) for x in maps])

        return hook

    with ExitStack() as stack:
        for name, child in model.named_children():
            stack.callback(child.register_forward_hook(watch(name)).remove)
        yield


def _failure(model: nn.Module, example_inputs: Sequence[Any], error: Exception) -> str:
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    inputs = ", ".join(_describe(x) for x in example_inputs)
    return (
        f"{type(model).__name__} fails on the example inputs ({inputs}): {said}; check model(*example_inputs)"
    )


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_describe(x) for x in value[:3])}{', …' if len(value) > 3 else ''}]"
    return type(value).__name__
