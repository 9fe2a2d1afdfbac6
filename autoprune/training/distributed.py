"""Training on several processes that `torchrun` started: each takes its fraction of every batch.

All else is the same on every process, so weights and optimizer states agree, and rank 0 alone writes files.
Without `torchrun` there is one process, and these functions do nothing.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(days=1)  # of a collective call: the others wait while rank 0 evaluates

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes of a `torchrun` inside the block; a group that exists already is used.

    Each process gets the GPU of its local rank where there are any.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_only(block: AbstractContextManager[None]) -> AbstractContextManager[None]:
    """The context on rank 0, such as a lock that the processes hold together; on the others none."""
    return block if rank() == 0 else nullcontext()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Waits until all processes have called it."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: T) -> T:
    """The ``value`` of rank 0, on all processes."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def broadcast_model(model: Module, device: torch.device) -> Module:
    """The ``model`` of rank 0: a copy on ``device``, or ``model`` itself where there is one process."""
    if world_size() == 1:
        return model
    model = copy.deepcopy(model).to(device)
    for tensor in model.state_dict().values():
        values = tensor.contiguous()
        dist.broadcast(values, src=0)
        tensor.copy_(values)
    return model


def sum_gradients(weights: Iterable[nn.Parameter], loss: Tensor) -> tuple[Tensor, Tensor | None]:
    """Replaces gradients by their sums over all processes; a weight that lacks one gets zeros.

    Returns:
        The sum of ``loss`` (a scalar), and on how many processes each weight had a gradient, [weights]: where
        on none, it should have none, as in one process. ``None`` where there is one process. Neither is
        waited for.
    """
    if world_size() == 1:
        return loss, None
    parameters = list(weights)
    present = torch.tensor([weight.grad is not None for weight in parameters]).to(loss)
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
    sums = torch.cat([*(gradient.flatten() for gradient in gradients), present, loss.reshape(1)])
    dist.all_reduce(sums)
    sizes = [*(gradient.numel() for gradient in gradients), len(parameters), 1]
    *parts, counts, total = torch.split(sums, sizes)
    for weight, gradient, part in zip(parameters, gradients, parts, strict=True):
        weight.grad = gradient.copy_(part.view_as(gradient))
    return total.squeeze(), counts
