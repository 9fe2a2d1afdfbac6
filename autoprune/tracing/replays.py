"""Runs pruned and masked models as the dense one was traced, to compare what they do."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from autoprune.modules.run_modes import eval_then_restore, set_training, thresholds_lowered
from autoprune.ops.labels import Step
from autoprune.ops.op_dispatch import OpDispatch, OpEntry, tensors_in
from autoprune.ops.rules import compared, numbers_of
from autoprune.tracing.trace import Shape, Trace, run_once, run_under_rules


def replay(
    model: nn.Module,
    example_inputs: Sequence[Any],
    traced: Trace,
    corrected: AbstractContextManager[Any] | None = None,
) -> tuple[list[Step[Shape]], Exception | None]:
    """Runs a pruned model as `trace` ran the dense one, inside ``corrected`` if that is given.

    Returns:
        Its ops, up to the error if there was one.
    """
    steps: list[Step[Shape]] = []

    def record(func: Any, entry: OpEntry, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        shapes = [tuple(tensor.shape) for tensor in tensors_in((out,))]
        if (step := compared(func, entry.name)) is not None:
            steps.append(Step(step, numbers_of(entry.name, args), shapes))

    @contextmanager
    def recorded() -> Iterator[None]:
        with corrected or nullcontext(), OpDispatch(record):
            yield

    return steps, run_again(model, example_inputs, traced, recorded())


def run_again(
    model: nn.Module,
    example_inputs: Sequence[Any],
    traced: Trace,
    inside: AbstractContextManager[Any] | None = None,
) -> Exception | None:
    """Runs a pruned model as `trace` ran the dense one, inside a context; returns its error, if any."""
    with eval_then_restore(model), torch.no_grad(), warnings.catch_warnings(action="ignore"):
        try:
            with inside or nullcontext():
                with thresholds_lowered(model) if traced.lowered else nullcontext():
                    model(*example_inputs)
                if traced.training:
                    set_training(model)
                    model(*example_inputs)
        except Exception as error:
            return error
    return None


def retrace(model: nn.Module, example_inputs: Sequence[Any], traced: Trace, first_free: int = 0) -> Trace:
    """Traces another model in the same way as ``traced`` was.

    Parameters have the same atoms in both, all others are ``first_free`` or above.
    """
    with eval_then_restore(model):
        with thresholds_lowered(model) if traced.lowered else nullcontext():
            result = run_once(model, example_inputs, first_free)
        if traced.training:
            set_training(model)
            run_under_rules(model, example_inputs, result)
    result.scales = result.origins.settle()
    return result
