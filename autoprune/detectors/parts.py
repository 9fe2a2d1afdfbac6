"""Where a detector makes its feature maps and its predictions, and how these layers alone are run again.

A teacher compares a pruned detector with the dense one there. What is known of a detector is, in this order:
what its attribute ``features`` names (detectors of `autoprune.vendors` have it, a user's may); torchvision's
children ``backbone`` and ``head``; else the head that the trace finds (`ChannelGraph.head`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph
from autoprune.graph.groups import Index
from autoprune.modules.tensor_tree import feature_maps, feature_names
from autoprune.vendors import VendorDetector

BACKBONE = "backbone"
"""The child of torchvision's detectors that makes the feature maps."""
HEAD = "head"
"""The child of its one-stage detectors that makes all predictions."""
LOGITS = "head.classification_head"
"""The module of its one-stage detectors that returns the class logits [n, anchors, classes]."""

Channels = tuple[str | None, Index]
"""The group of a tensor's channels, and the group's channel at each position."""


@dataclass(frozen=True)
class Parts:
    """The parts of a detector, by the names of its modules.

    Attributes:
        features: the channels of each feature map [n, c, h, w], in order.
        makers: the modules that return the feature maps; empty where ``head`` gets them.
        head: the module that makes the predictions of them; empty where there is none.
        logits: the modules that return class logits, each a tensor; empty where none are known.
    """

    features: Sequence[Channels]
    makers: tuple[str, ...]
    head: str
    logits: tuple[str, ...]

    def on_batch(self, model: nn.Module, take: Callable[[Any], None]) -> RemovableHandle:
        """Calls ``take`` with what `run` needs to run the same layers again, at each forward pass.

        The model is the detector itself; the handle ends it.
        """
        if isinstance(model, VendorDetector):
            return model.transform.register_forward_hook(lambda _module, _args, output: take(output[0]))
        if self.makers == (BACKBONE,):
            model = model.get_submodule(BACKBONE)
        return model.register_forward_pre_hook(lambda _module, args: take(args[0]))

    def layers(self, model: nn.Module, head: bool) -> nn.Module:
        """A copy of the layers that make the feature maps, in eval mode, under the same names.

        Args:
            model: the detector; not changed.
            head: whether those of the head are needed too.
        """
        if not isinstance(model, VendorDetector) and self.makers == (BACKBONE,):
            needed = {BACKBONE, HEAD} if head else {BACKBONE}
            model = nn.ModuleDict({name: child for name, child in model.named_children() if name in needed})
        return copy.deepcopy(model).eval()

    def run(self, layers: nn.Module, batch: Any) -> None:
        """Runs a copy that `layers` made on what `on_batch` gave."""
        if isinstance(layers, VendorDetector):
            layers.raw(batch)
        elif isinstance(layers, nn.ModuleDict):
            features = feature_maps(layers[BACKBONE](batch))
            if HEAD in layers:
                layers[HEAD](features)
        else:
            layers(batch)


def find_parts(model: nn.Module, graph: ChannelGraph) -> Parts | None:
    """The parts of a detector; ``None`` where no feature maps are known.

    Args:
        model: the dense detector.
        graph: its channel graph.

    Raises:
        ModelError: its attribute ``features`` names modules that return none.
    """
    if named := feature_names(model):
        if without := [name for name in named if not graph.features.get(name)]:
            raise ModelError(
                f"{type(model).__name__}.features names `{without[0]}`, which returned no feature maps "
                "[n, c, h, w]; name modules that do"
            )
        maps = [channels for name in named for channels in graph.features[name]]
        return Parts(maps, named, graph.head, tuple(getattr(model, "class_logits", ())))
    if isinstance(getattr(model, BACKBONE, None), nn.Module) and graph.features.get(BACKBONE):
        head = HEAD if isinstance(getattr(model, HEAD, None), nn.Module) else ""
        logits = (LOGITS,) if any(name == LOGITS for name, _ in model.named_modules()) else ()
        return Parts(graph.features[BACKBONE], (BACKBONE,), head, logits)
    return Parts(graph.head_inputs, (), graph.head, ()) if graph.head else None


def prediction_inputs(graph: ChannelGraph, parts: Parts) -> dict[str, tuple[str, Index]]:
    """What the prediction layers of a head read, where that is not the feature maps themselves.

    Prediction layers are the convolutions of the head whose outputs no prunable group holds; in RetinaNet and
    FCOS they read the outputs of their subnets ("towers"), in SSD the backbone's.

    Returns:
        {layer: (the prunable group of its inputs, the group's channel at each position)}.
    """
    outputs = {
        member.tensor for group in graph.prunable.values() for member in group.members if member.axis == 0
    }
    features = {group for group, _ in parts.features}
    return {
        member.tensor.removesuffix(".weight"): (name, member.channels)
        for name, group in graph.prunable.items()
        for member in group.members
        if parts.head
        and name not in features
        and member.tensor.startswith(f"{parts.head}.")
        and member.axis == 1
        and len(graph.shapes[member.tensor]) == 4
        and member.tensor not in outputs
    }
