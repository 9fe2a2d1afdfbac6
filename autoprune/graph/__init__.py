"""Finds the channel groups of a model from one traced forward pass, and prunes them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from autoprune.graph.emptiable import with_emptiable
from autoprune.graph.groups import ChannelGraph, ChannelGroup
from autoprune.graph.solve import solve
from autoprune.graph.surgery import mask, prune
from autoprune.graph.verify import verified
from autoprune.graph.workbench import Workbench
from autoprune.modules.validate import check
from autoprune.tracing.trace import trace

__all__ = ["ChannelGraph", "ChannelGroup", "Costs", "analyze", "count", "mask", "prune"]


class Costs(NamedTuple):
    """What a model costs as it is.

    Attributes:
        gflops: billions of multiply-adds of one pass.
        mparams: millions of parameters.
    """

    gflops: float
    mparams: float


def analyze(model: nn.Module, example_inputs: Sequence[Any]) -> ChannelGraph:
    """Finds the channel groups and the cost of ``model`` from one forward pass, ``model(*example_inputs)``.

    Further passes, of masked and pruned copies, check the groups. All run in eval mode, and the model is left
    as it was.

    Args:
        model: any eager module; one compiled by `torch.nn.Module.compile` runs eagerly here.
        example_inputs: its arguments. A detector takes one argument, a list of images: ``([image],)``.

    Raises:
        ModelError: the model can't be traced, or fails on the inputs.
    """
    check(model, example_inputs)
    traced = trace(model, example_inputs)
    bench = Workbench(model)
    return with_emptiable(bench, example_inputs, traced, verified(model, example_inputs, traced, bench))


def count(model: nn.Module, example_inputs: Sequence[Any]) -> Costs:
    """The costs of ``model`` as `analyze` counts them, from one pass, without finding what can be pruned.

    Args:
        model: see `analyze`.
        example_inputs: see `analyze`.

    Raises:
        ModelError: see `analyze`.
    """
    check(model, example_inputs)
    graph = solve(trace(model, example_inputs))
    return Costs(graph.gflops(), graph.mparams())
