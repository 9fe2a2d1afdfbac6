"""Training on several processes that `torchrun` started: each takes its fraction of every batch.

What all do is the same but for that share, so weights and optimiser agree everywhere, and rank 0 alone
writes. Without `torchrun` there is one process, and nothing here does anything.
"""

import copy
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

LONGEST_WAIT = timedelta(days=1)  # for rank 0, which evaluates alone

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes of a `torchrun` inside the block; a group that is there already is used.

    Each process gets the GPU of its local rank where there are any.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or distributed.is_initialized():
        yield
        return
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Waits until all processes are here."""
    if count() > 1:
        distributed.barrier()


def broadcast_object(value: T) -> T:
    """What rank 0 has for ``value``."""
    found = [value]
    if count() > 1:
        distributed.broadcast_object_list(found, src=0)
    return found[0]


def broadcast_model(model: Module, device: torch.device) -> Module:
    """``model`` as rank 0 has it: a copy on ``device``, or ``model`` itself where there is one process."""
    if count() == 1:
        return model
    model = copy.deepcopy(model).to(device)
    for tensor in model.state_dict().values():
        values = tensor.contiguous()
        distributed.broadcast(values, src=0)
        tensor.copy_(values)
    return model


def add_up(weights: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Replaces gradients by their sums over all processes, and returns the sum of ``loss`` (a scalar).

    A weight that has a gradient nowhere keeps none, as in one process.
    """
    if count() == 1:
        return loss
    known = list(weights)
    present = torch.tensor([weight.grad is not None for weight in known]).to(loss)
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in known]
    sums = torch.cat([*(gradient.flatten() for gradient in gradients), present, loss.reshape(1)])
    distributed.all_reduce(sums)
    lengths = [*(gradient.numel() for gradient in gradients), len(known), 1]
    *parts, found, total = torch.split(sums, lengths)
    for weight, gradient, part, somewhere in zip(known, gradients, parts, found.tolist(), strict=True):
        weight.grad = gradient.copy_(part.view_as(gradient)) if somewhere else None
    return total.squeeze()
