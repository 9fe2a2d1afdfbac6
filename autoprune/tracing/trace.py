"""Runs a model once, eagerly, and applies the op rules to every aten op."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias
from weakref import ReferenceType, ref

import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.modules.module_sizes import following
from autoprune.modules.response_norm import ResponseForm, ResponseNorm
from autoprune.modules.run_modes import eval_then_restore, set_training, thresholds_lowered
from autoprune.modules.tensor_tree import tensors_within
from autoprune.modules.validate import failure
from autoprune.ops.components import connected
from autoprune.ops.labels import MARK, Atoms, Axis, Labels, Step, TraceConstraints
from autoprune.ops.op_dispatch import OpDispatch, OpEntry, tensors_in
from autoprune.ops.rules import MAKES_OF_NUMBER, OF_SHAPE, PRODUCTS, compared, numbers_of
from autoprune.ops.shape_reads import ShapeReads
from autoprune.ops.value_reads import SCALAR_READ, ValueReads
from autoprune.tracing.feature_maps import features_recorded
from autoprune.tracing.layers import LayerRecord, layers_recorded
from autoprune.tracing.origins import Origins
from autoprune.tracing.signal_record import SignalRecord
from autoprune.tracing.size_attributes import SizeAttribute

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Leaf:
    """A parameter or buffer under its name in the state dict.

    Attributes:
        name: first name of the tensor; a shared one has several.
        tensor: the tensor itself.
        axes: label of each axis.
    """

    name: str
    tensor: torch.Tensor
    axes: tuple[Axis, ...]


@dataclass
class Trace:
    """What one forward pass revealed.

    Attributes:
        constraints: everything that the rules stated.
        leaves: the parameters and buffers, each once.
        unit: for each atom, the one that represents its unit; set once the constraints are solved.
        lowered: whether detection thresholds had to be lowered to reach all layers.
        training: whether the model was run in training mode too, as eval mode did not use all parameters.
        features: for each direct child of the model, and each module that its attribute ``features`` names,
            label and length of the channel axis of every 4-D tensor that it returned.
        read: the same of every 4-D tensor that a module with children got.
        signal: the ops that carry the input's signal.
        layers: the layers that can be replaced once they are empty.
        scales: the label of each width that sets an attention's scale, with the rows that make up for it.
        sizes: attributes of modules that follow the widths.
        responses: the global response norms by name.
        may_branch: whether the model's code read values before it ran layers, on which these may depend.
    """

    constraints: TraceConstraints = field(default_factory=TraceConstraints)
    leaves: list[Leaf] = field(default_factory=list)
    unit: Atoms | None = None
    lowered: bool = False
    training: bool = False
    features: dict[str, list[tuple[Axis, int]]] = field(default_factory=dict)
    read: dict[str, list[tuple[Axis, int]]] = field(default_factory=dict)
    signal: SignalRecord = field(default_factory=SignalRecord)
    layers: LayerRecord = field(default_factory=LayerRecord)
    scales: list[tuple[Atoms, list[Atoms]]] = field(default_factory=list)
    sizes: list[SizeAttribute] = field(default_factory=list)
    responses: dict[str, ResponseForm] = field(default_factory=dict)
    may_branch: bool = False
    _channels: dict[tuple[int, ...], Atoms] = field(default_factory=dict)

    def channels(self) -> Atoms:
        """The first atom of each atom's channel, [atoms]; those that a change of shape made one are one."""
        stated = self.constraints
        state = stated.size, len(stated.same), len(stated.joined)
        if state not in self._channels:
            self._channels = {state: connected(stated.size, [*stated.same, *stated.joined])}
        return self._channels[state]

    @cached_property
    def origins(self) -> Origins:
        """Where the queries of attentions come from."""
        return Origins(self.constraints)

    @cached_property
    def axes(self) -> dict[tuple[str, int], Axis]:
        """The label of each axis of each leaf."""
        return {(leaf.name, d): axis for leaf in self.leaves for d, axis in enumerate(leaf.axes)}


def _apply_rule(
    traced: Trace,
    marked: list[ReferenceType[torch.Tensor]],
    func: Any,
    entry: OpEntry,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
) -> None:
    op, constraints = entry.name, traced.constraints
    tensors, outputs = tensors_in(args), tensors_in((out,))
    marked.extend(map(ref, outputs))
    inputs = [constraints.labels(tensor) for tensor in tensors]
    labeled = any(inputs)
    for tensor in tensors:
        constraints.use(tensor)
    constraints.seen.update(map(id, tensors))
    if op == SCALAR_READ:
        constraints.read(tensors[0], ".item()")
    if entry.rule is None or "out" in kwargs:
        if labeled:
            _freeze_inputs(constraints, op, inputs)
    elif entry.always or labeled:
        try:
            entry.rule(constraints, op, args, out)
        except Exception:
            # An op used in a way that its rule does not support must not stop the model.
            _freeze_inputs(constraints, op, inputs)
    for tensor, labels in zip(tensors, inputs, strict=True):
        if labels and tensor.numel() == 0:
            constraints.empty.extend(axis for axis in labels.axes if axis is not None)
    if labeled or any(map(constraints.derived, tensors)):
        for tensor in outputs:
            constraints.derive(tensor)
    # Boxes scaled by image sizes, or by a number that depends on the data, say nothing about widths.
    numbers = numbers_of(op, args)
    if op not in MAKES_OF_NUMBER and not any(constraints.derived(x) for x in tensors if x.dim()):
        numbers = ()
    if any(constraints.derived(x) for x in tensors if not x.dim()):
        numbers = ()
    output_axes = [constraints.axes(tensor) for tensor in outputs]
    if not entry.aliases:
        for tensor, axes in zip(outputs, output_axes, strict=True):
            constraints.activation(tensor.element_size(), *zip(tensor.shape, axes, strict=True))
    if (step := compared(func, op)) is not None:
        constraints.steps.append(Step(step, numbers, output_axes))
    input_axes = [x.axes if x else (None,) * t.dim() for x, t in zip(inputs, tensors, strict=True)]
    product, view = PRODUCTS.get(op), entry.aliases and not func._schema.is_mutable
    traced.signal.op(tensors, input_axes, outputs, output_axes, product, view, op in OF_SHAPE)
    traced.origins.op(func, op, args, tensors, outputs)


def _freeze_inputs(constraints: TraceConstraints, op: str, inputs: Sequence[Labels | None]) -> None:
    for labels in inputs:
        for axis in labels.axes if labels else ():
            constraints.freeze(axis, f"goes into {op}, which has no rule for it")


def trace(model: nn.Module, example_inputs: Sequence[Any]) -> Trace:
    """Runs ``model(*example_inputs)`` in eval mode without gradients and records what happens to channels.

    The model is left as it was: training flags, buffers and random state are restored. A detector that
    detects nothing sends no elements through its last layers, and torch skips ops on empty tensors: it is run
    again with its thresholds lowered, and only the costs are kept from the first run. If parameters or
    buffers still met no op, branches that only run in training (auxiliary heads) may read channels too: the
    model is run in training mode as well, without adding to the costs.

    Raises:
        ModelError: the model fails on the inputs; its own error is in the message.
    """
    with eval_then_restore(model):
        result = run_once(model, example_inputs)
        if _hides_layers(result):
            plain = result.constraints
            with thresholds_lowered(model):
                result = run_once(model, example_inputs, first_free=plain.size)
            for axis in result.constraints.empty if _hides_layers(result) else ():
                result.constraints.freeze(axis, "has no elements here; give an input that reaches all layers")
            result.lowered = True
            # Parameters have the same atoms in both runs, all other atoms are distinct.
            result.constraints.costs, result.constraints.activations = plain.costs, plain.activations
        if _unseen(result):
            _trace_training(model, example_inputs, result)
    result.scales = result.origins.settle()
    return result


def _trace_training(model: nn.Module, example_inputs: Sequence[Any], result: Trace) -> None:
    """Runs the model in training mode too: branches that only run there must lose the same channels.

    If it can't run that way (it needs targets, or a larger input), all channels that may feed a tensor which
    met no op are frozen: those on axes as long as one of its own.
    """
    constraints, unseen = result.constraints, _unseen(result)
    costs, activations = list(constraints.costs), list(constraints.activations)
    produced, steps, ops = len(constraints.produced), len(constraints.steps), len(result.signal.ops)
    calls = dict(constraints.shape_calls)
    unseen_axes = {id(axis) for leaf in unseen for axis in leaf.axes}
    set_training(model)
    try:
        run_under_rules(model, example_inputs, result)
        result.training = True
    except Exception:
        reason = "may feed `{}`, which met no op; remove that, or give inputs that training mode accepts too"
        remaining = reversed(_unseen(result))
        reasons = {n: reason.format(leaf.name) for leaf in remaining for n in leaf.tensor.shape[:2]}
        for axis in [axis for step in constraints.steps for axes in step.outputs for axis in axes]:
            if axis is not None and len(axis) in reasons:
                constraints.freeze(axis, reasons[len(axis)])
        del constraints.steps[steps:], result.signal.ops[ops:]
        constraints.shape_calls = calls
    constraints.costs, constraints.activations = costs, activations
    for axis in constraints.produced[produced:]:
        if id(axis) in unseen_axes:
            constraints.freeze(axis, "is made in training mode only")


def _hides_layers(traced: Trace) -> bool:
    """Whether some parameters may have met no op because tensors were empty."""
    return bool(traced.constraints.empty) and bool(_unseen(traced))


def _unseen(traced: Trace) -> list[Leaf]:
    """Parameters and buffers that met no op."""
    return [
        leaf
        for leaf in traced.leaves
        if id(leaf.tensor) not in traced.constraints.seen and any(axis is not None for axis in leaf.axes)
    ]


def run_once(model: nn.Module, example_inputs: Sequence[Any], first_free: int = 0) -> Trace:
    """Labels all tensors of a model and runs it once; other atoms than theirs are ``first_free`` or above."""
    result = Trace()
    constraints = result.constraints
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            axes = constraints.leaf(tensor).axes if tensor.is_floating_point() else (None,) * tensor.dim()
            result.leaves.append(Leaf(name, tensor, axes))
            result.signal.leaf(name, tensor)
            result.origins.weight(tensor)
    constraints.size = max(constraints.size, first_free)
    result.responses = {
        name: module.response_form
        for name, module in model.named_modules()
        if isinstance(module, ResponseNorm)
    }
    features = features_recorded(model, constraints, result.features, result.read)
    with features, layers_recorded(model, result.signal, result.layers):
        try:
            run_under_rules(model, example_inputs, result)
        except Exception as error:
            raise ModelError(failure(model, example_inputs, error)) from error
    return result


def run_under_rules(model: nn.Module, example_inputs: Sequence[Any], traced: Trace) -> None:
    """One forward pass under the op rules; channels of its results are frozen."""
    constraints = traced.constraints
    names = {id(module): name for name, module in model.named_modules()}
    outputs: list[ReferenceType[torch.Tensor]] = []
    try:
        with (
            torch.no_grad(),
            traced.signal.of(tensors_within(example_inputs)),
            following(model, constraints.follows),
            ShapeReads(constraints, names),
            ValueReads(constraints),
            OpDispatch(partial(_apply_rule, traced, outputs)),
        ):
            output = model(*example_inputs)
        traced.may_branch |= constraints.may_branch
        for tensor in tensors_within(output):
            traced.signal.returned(tensor, constraints.axes(tensor))
            constraints.use(tensor)
            for axis in constraints.axes(tensor):
                constraints.freeze(axis, "is an output of the model")
    finally:
        _remove_marks(outputs)


def _remove_marks(outputs: Sequence[ReferenceType[torch.Tensor]]) -> None:
    """Removes what the trace noted on tensors that live on: caches of the model, its buffers, its inputs."""
    for reference in outputs:
        if (tensor := reference()) is not None:
            for key in [key for key in tensor.__dict__ if key.startswith(MARK)]:
                del tensor.__dict__[key]
