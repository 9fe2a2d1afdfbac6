"""torch-pruning's part of `search.py`: prunes the detector through its own API and says which channels stay.

Run by `search.py` in an environment that has torch-pruning, with one JSON argument.
"""

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp

from autoprune.config import make_config
from autoprune.detectors import detector_inputs
from autoprune.graph import ChannelGraph, prune
from autoprune.modules.losses import losses_of
from autoprune.modules.run_modes import loss_mode_copy
from autoprune.task.pruning_task import PruningTask, load_task

PRECISION = 0.005  # how near to the budget the pruning ratio is tuned, as a fraction of it
_HALVINGS = 12


def main() -> None:
    warnings.filterwarnings("ignore", "Maximum recursive depth")  # of its own search for shapes
    request = json.loads(sys.argv[1])
    task = load_task(make_config(**{**request["config"], "norm": "train", "device": "cpu"}))
    gradients = loss_gradients(task, request["images"]) if request["importance"] == "taylor" else {}
    low, high, best = 0.0, 1.0, None
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        pruned, keep = global_pruning(task, request["importance"], gradients, ratio, request["largest_ratio"])
        gflops = task.costs(keep)["gflops"]
        if gflops > request["limit_gflops"]:
            low = ratio
            continue
        high, best = ratio, (pruned, keep, ratio, gflops)
        if gflops > (1 - PRECISION) * request["limit_gflops"]:
            break
    if best is None:
        raise SystemExit("torch-pruning does not reach the budget")
    pruned, keep, ratio, gflops = best
    same_as_ours(task, pruned, keep)
    answer = {"keep": keep, "pruning_ratio": ratio, "gflops": gflops}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def global_pruning(
    task: PruningTask, importance: str, gradients: dict[str, torch.Tensor], ratio: float, largest: float
) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    """Prunes a copy by a global ranking; returns it, and the kept channels of each group that lost any."""
    model = copy.deepcopy(task.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        parameter.grad = gradients[name].clone() if name in gradients else None
    scores = {
        "taylor": tp.importance.GroupTaylorImportance,
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    }[importance]()
    modules = dict(model.named_modules())
    pruner = tp.pruner.BasePruner(
        model,
        detector_inputs(task.input_size)[0],
        scores,
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=largest,
        ignored_layers=[modules[name] for name in final_layers(task.graph, modules)],
        forward_fn=lambda m, images: m(images),
    )
    names = {module: name for name, module in modules.items()}
    alive = {
        name: np.arange(module.out_channels)
        for name, module in modules.items()
        if isinstance(module, torch.nn.Conv2d)
    }
    for group in pruner.step(interactive=True):
        for dep, indices in group:
            name = names.get(dep.target.module, "")
            if name in alive and pruner.DG.is_out_channel_pruning_fn(dep.handler):
                alive[name] = np.delete(alive[name], indices)
        group.prune()
    return model, kept_channels(task.graph, alive)


def final_layers(graph: ChannelGraph, modules: dict[str, Any]) -> list[str]:
    """Convolutions whose outputs must stay: those that no prunable group is produced by."""
    produced = {
        tensor.rpartition(".")[0]
        for group in graph.prunable.values()
        for (tensor, _, _), role in zip(group.members, group.roles, strict=True)
        if role == "producer"
    }
    return [
        name
        for name, module in modules.items()
        if isinstance(module, torch.nn.Conv2d) and name not in produced
    ]


def kept_channels(graph: ChannelGraph, alive: dict[str, np.ndarray[Any, Any]]) -> dict[str, list[int]]:
    """From the output channels that each convolution has left to the channels that each group keeps."""
    keep = {}
    for name, group in graph.prunable.items():
        left = {
            tuple(sorted(index[alive[tensor.rpartition(".")[0]]].tolist()))
            for (tensor, axis, index), role in zip(group.members, group.roles, strict=True)
            if role == "producer" and tensor.endswith(".weight") and axis == 0
        }
        if len(left) != 1:
            raise SystemExit(f"torch-pruning left the producers of {name} with different channels")
        kept = [channel for channel in left.pop() if channel >= 0]
        if len(kept) < group.width:
            keep[name] = kept
    return keep


def same_as_ours(task: PruningTask, theirs: torch.nn.Module, keep: dict[str, list[int]]) -> None:
    """Refuses kept channels that do not give the very weights that torch-pruning ended with."""
    ours = prune(task.model, task.graph, keep).state_dict()
    for name, value in theirs.state_dict().items():
        if ours[name].shape != value.shape or not torch.equal(ours[name], value):
            raise SystemExit(f"torch-pruning's {name} is not what the kept channels give")


def loss_gradients(task: PruningTask, images: int) -> dict[str, torch.Tensor]:
    """Gradients of the detection loss, summed over training images, as torch-pruning takes them."""
    model = loss_mode_copy(task.model).requires_grad_(True)
    chosen = np.random.default_rng(task.config.seed).permutation(len(task.train))[:images]
    for index in chosen.tolist():
        losses = losses_of(model, *task.train.batch([index], torch.device("cpu")))
        torch.autograd.backward(list(losses.values()))
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


if __name__ == "__main__":
    main()
