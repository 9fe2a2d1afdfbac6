"""What a forward pass of a detector computes that a teacher compares, and the hooks that capture it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.modules.tensor_tree import feature_maps

if TYPE_CHECKING:
    from autoprune.detectors.parts import Parts


@dataclass(frozen=True)
class Captured:
    """What a forward pass of a detector computed.

    Attributes:
        batch: what `Parts.run` runs the same layers on; for torchvision's detectors the backbone's input
            [n, 3, h, w].
        features: the feature maps [n, c_k, h_k, w_k].
        logits: class logits, such as [n, anchors, classes] of all levels; empty where they are not distilled.
        inputs: by prediction layer, its input at each call [n, c, h_k, w_k], where they are distilled.
    """

    batch: Any
    features: list[Tensor]
    logits: list[Tensor] = field(default_factory=list)
    inputs: Mapping[str, list[Tensor]] = field(default_factory=dict)


class Tap:
    """Captures what a teacher compares, inside a ``with`` block.

    Args:
        model: the detector, or a copy of its layers (`Parts.layers`).
        parts: where its feature maps are; ``None`` captures nothing.
        logits: whether to capture the class logits.
        layers: the prediction layers whose inputs are captured.
        batch: whether to capture the batch, which a copy of the layers does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: "Parts | None" = None,
        logits: bool = False,
        layers: Iterable[str] = (),
        batch: bool = True,
    ) -> None:
        self._model, self._parts, self._with = model, parts, (logits, batch)
        self._read = tuple(layers)
        self._stack = ExitStack()
        self._batch: Any = None
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._inputs: dict[str, list[Tensor]] = {}

    def __enter__(self) -> "Tap":
        """Adds the hooks."""
        if self._parts is None:
            return self
        parts, model, (logits, batch) = self._parts, self._model, self._with
        find, record = model.get_submodule, self._record_input
        hooks = [parts.on_batch(model, self._begin)] if batch else []
        hooks += [find(name).register_forward_hook(self._returned) for name in parts.makers]
        if not parts.makers:
            hooks.append(find(parts.head).register_forward_pre_hook(self._received, with_kwargs=True))
        if logits:
            hooks += [find(name).register_forward_hook(self._predicted) for name in parts.logits]
        hooks += [
            find(name).register_forward_pre_hook(partial(record, name), with_kwargs=True)
            for name in self._read
        ]
        for hook in hooks:
            self._stack.callback(hook.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the hooks."""
        self._stack.close()
        self._begin(None)

    def take(self) -> Captured:
        """The last forward pass."""
        if not self._features:
            raise RuntimeError("no forward pass made feature maps")
        captured = Captured(self._batch, self._features, self._logits, self._inputs)
        self._begin(None)
        return captured

    def _begin(self, batch: Any) -> None:
        self._batch, self._features, self._logits, self._inputs = batch, [], [], {}

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        self._features += feature_maps(output)

    def _received(self, module: nn.Module, args: Any, named: Any) -> None:
        self._features += feature_maps((*args, named))

    def _predicted(self, module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ModelError(f"class logits must be a tensor, and are a {kind}; set distill_logits to 0")
        self._logits.append(output)

    def _record_input(self, layer: str, module: nn.Module, args: Any, named: Any) -> None:
        self._inputs.setdefault(layer, []).append(input_of(args, named))


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Callable[..., None], after: bool = False) -> Iterator[None]:
    """Calls ``hook(name, layer, input)`` before each call of a layer, or after it with the output too."""

    def call(name: str, layer: nn.Module, args: Any, named: Any, *output: Any) -> None:
        hook(name, layer, input_of(args, named), *output)

    handles = [
        (layer.register_forward_hook if after else layer.register_forward_pre_hook)(
            partial(call, name), with_kwargs=True
        )
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_of(args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """What a layer with one input is called with, by position or by name."""
    return args[0] if args else next(iter(named.values()))
