"""Finds the channel groups of a model from one traced forward pass, and prunes them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from autoprune.errors import ModelError
from autoprune.graph.groups import ChannelGraph, ChannelGroup
from autoprune.graph.surgery import mask, prune
from autoprune.graph.trace import trace
from autoprune.graph.verify import verified

__all__ = ["ChannelGraph", "ChannelGroup", "analyze", "mask", "prune"]


def analyze(model: nn.Module, example_inputs: Sequence[Any]) -> ChannelGraph:
    """Finds the channel groups and the cost of ``model`` by running ``model(*example_inputs)`` once.

    The model is run in eval mode and left as it was.

    Args:
        model: any eager module.
        example_inputs: its arguments. A detector takes one argument, a list of images: ``([image],)``.

    Raises:
        ModelError: the model can't be traced, or fails on the inputs.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    if not isinstance(example_inputs, (tuple, list)):
        raise ModelError(
            f"example_inputs is a {type(example_inputs).__name__}; give a tuple of the model's arguments, "
            "such as (images,), or ([image],) for a detector"
        )
    for kind, inner in (
        (nn.parallel.DistributedDataParallel, "module"),
        (nn.DataParallel, "module"),
        (FullyShardedDataParallel, "module"),
        (torch._dynamo.eval_frame.OptimizedModule, "_orig_mod"),
    ):
        if isinstance(model, kind):
            raise ModelError(f"the model is wrapped in {kind.__name__}; give model.{inner}")
    if sharded := next((n for n, p in model.named_parameters() if isinstance(p, DTensor)), None):
        raise ModelError(
            f"the model is sharded over processes (`{sharded}` is a DTensor); give the whole model"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is a ScriptModule; give the eager model that it was made from")
    return verified(model, example_inputs, trace(model, example_inputs))
