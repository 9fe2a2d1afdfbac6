"""What a forward pass of a detector computes that a teacher compares, and the hooks that capture it."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph
from autoprune.graph.groups import Index

CHILD = "backbone"  # the child module whose outputs are imitated; every torchvision detector has it
HEAD = "head"  # the child that makes predictions of all feature maps; every one-stage torchvision detector's
LOGITS = "cls_logits"  # its output with the class scores [n, anchors, classes]


def has_features(model: nn.Module) -> bool:
    """Whether ``model`` has the child module whose outputs can be distilled."""
    return isinstance(getattr(model, CHILD, None), nn.Module)


def has_head(model: nn.Module) -> bool:
    """Whether ``model`` has a one-stage head."""
    return has_features(model) and isinstance(getattr(model, HEAD, None), nn.Module)


def prediction_inputs(graph: ChannelGraph) -> dict[str, tuple[str, Index]]:
    """What the prediction layers of a one-stage head read, where that is not the backbone's outputs.

    Prediction layers are the convolutions of the head whose outputs no group holds; RetinaNet and FCOS read
    the outputs of their subnets ("towers") by them, SSD's read the backbone's.

    Returns:
        {layer: (the prunable group of its inputs, the group's channel at each position)}; layers are named
        within the head.
    """
    outputs = {
        member.tensor for group in graph.prunable.values() for member in group.members if member.axis == 0
    }
    features = {group for group, _ in graph.features.get(CHILD, ())}
    return {
        member.tensor.removeprefix(f"{HEAD}.").removesuffix(".weight"): (name, member.channels)
        for name, group in graph.prunable.items()
        for member in group.members
        if name not in features
        and member.tensor.startswith(f"{HEAD}.")
        and member.axis == 1
        and len(graph.shapes[member.tensor]) == 4
        and member.tensor not in outputs
    }


@dataclass(frozen=True)
class Captured:
    """What a forward pass of a detector computed.

    Attributes:
        images: the backbone's input [n, 3, h, w].
        features: the backbone's outputs [n, c_k, h_k, w_k].
        logits: the head's class logits [n, anchors, classes]; ``None`` where they are not distilled.
        inputs: by prediction layer, its input at each call [n, c, h_k, w_k], where they are distilled.
    """

    images: Tensor
    features: list[Tensor]
    logits: Tensor | None = None
    inputs: Mapping[str, list[Tensor]] = field(default_factory=dict)


class Tap:
    """Captures what a teacher compares, inside a ``with`` block.

    Args:
        model: the student.
        features: whether to capture the backbone's outputs.
        logits: whether to capture the head's class logits.
        layers: the prediction layers whose inputs are captured.
    """

    def __init__(
        self, model: nn.Module, features: bool = False, logits: bool = False, layers: Iterable[str] = ()
    ) -> None:
        self._model, self._wanted, self._layers = model, (features, logits), tuple(layers)
        self._stack = ExitStack()
        self._features: tuple[Tensor, list[Tensor]] | None = None
        self._logits: Tensor | None = None
        self._inputs: dict[str, list[Tensor]] = {}

    def __enter__(self) -> "Tap":
        """Adds the hooks."""
        features, logits = self._wanted
        if features:
            hook = getattr(self._model, CHILD).register_forward_hook(self._capture_features)
            self._stack.callback(hook.remove)
        if logits:
            hook = getattr(self._model, HEAD).register_forward_hook(self._capture_logits)
            self._stack.callback(hook.remove)
        if self._layers:
            self._stack.enter_context(
                recording_inputs(getattr(self._model, HEAD), self._layers, self._inputs)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the hooks."""
        self._stack.close()
        self._forget()

    def take(self) -> Captured:
        """The last forward pass."""
        if self._features is None:
            raise RuntimeError("no forward pass went through the backbone")
        captured = Captured(*self._features, self._logits, dict(self._inputs))
        self._forget()
        return captured

    def _forget(self) -> None:
        self._features = self._logits = None
        self._inputs.clear()

    def _capture_features(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        self._features = args[0], feature_maps(output)

    def _capture_logits(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._logits = class_logits(output)


def recording_inputs(head: nn.Module, layers: Iterable[str], into: dict[str, list[Tensor]]) -> ExitStack:
    """While it is open, the input of each call of these layers of ``head`` is added to ``into``."""

    def record(layer: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        into.setdefault(layer, []).append(args[0])

    stack = ExitStack()
    for layer in layers:
        hook = head.get_submodule(layer).register_forward_pre_hook(partial(record, layer))
        stack.callback(hook.remove)
    return stack


def class_logits(output: Any) -> Tensor:
    """The class logits [n, anchors, classes] in what a head returns.

    Raises:
        ModelError: there are none.
    """
    logits = output.get(LOGITS) if isinstance(output, Mapping) else None
    if not isinstance(logits, Tensor):
        raise ModelError(f"the detector's `{HEAD}` gives no `{LOGITS}` to distill; set distill_logits to 0")
    return logits


def feature_maps(output: Any) -> list[Tensor]:
    """The 4-D tensors of a module's output (a tensor, or a dict or sequence of them), in order."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 4 else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in feature_maps(part)]
