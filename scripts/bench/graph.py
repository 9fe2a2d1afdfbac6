"""Channel groups on every torchvision detector, against torch-pruning and FastNAS of nvidia-modelopt.

Each case runs in a process of its own, one thread, with limits on time and memory; the peers may be
installed in another environment:

    python scripts/bench/graph.py --peer-python /path/to/venv/bin/python

A tool works on a detector if the pruned one is smaller and still runs on the image. `difference` is the
largest relative difference, in double precision, between the outputs of the layers of unpruned width in the
pruned model and in the dense one with the removed channels set to zero: round-off where pruning is exact.
"""

import argparse
import copy
import math
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from isolated import first_line, limit_memory, print_result, run_isolated
from torch import nn
from torchvision.models import detection, list_models
from torchvision.ops import FrozenBatchNorm2d

SECONDS, GIBIBYTES = 300, 12
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm)
# Layers that torch-pruning has to be told not to prune; the other tools find them.
PREDICTIONS = (
    *("cls_logits", "bbox_reg", "bbox_ctrness", "cls_score", "bbox_pred", "mask_fcn_logits"),
    *("kps_score_lowres", "regression_head.module_list", "classification_head.module_list"),
)


class Result(NamedTuple):
    """What a tool made: its figures, the pruned model, and the dense one without the removed channels."""

    figures: dict[str, Any]
    pruned: nn.Module
    masked: nn.Module


def build(name: str, norm: str) -> tuple[nn.Module, list[torch.Tensor]]:
    """A detector for 64-pixel images with its initial weights, and an image.

    Args:
        name: torchvision's name of it.
        norm: ``batch`` for BatchNorm2d, ``frozen`` for FrozenBatchNorm2d.
    """

    def freeze(module: nn.Module) -> None:
        for key, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, key, FrozenBatchNorm2d(child.num_features))
            else:
                freeze(child)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {} if "ssd" in name else {"min_size": 64, "max_size": 64}
    model = getattr(detection, name)(weights=None, weights_backbone=None, **sizes).eval()
    if norm == "frozen":
        freeze(model)
    return model, [torch.rand(3, 64, 64)]


def fastest(*works: Callable[[], Any], times: int = 7, seconds: float = 10) -> list[float]:
    """Seconds of the fastest run of each; interleaved, so that other load on the machine affects all."""
    best = [math.inf] * len(works)
    begin = time.perf_counter()
    for _ in range(times):
        for k, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[k] = min(best[k], time.perf_counter() - start)
        if time.perf_counter() - begin > seconds:
            break
    return best


@torch.no_grad()
def without(model: nn.Module, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of ``model`` in which modules output zeros on the removed channels."""
    model = copy.deepcopy(model)
    for name, channels in removed.items():
        module = model.get_submodule(name)
        for key in ("weight", "bias"):
            tensor = getattr(module, key, None)
            if isinstance(tensor, torch.Tensor):
                # Transposed convolutions have their outputs second.
                axis = int(isinstance(module, nn.ConvTranspose2d) and key == "weight")
                tensor.index_fill_(axis, torch.tensor(channels, dtype=torch.long), 0)
    return model


def run_autoprune(model: nn.Module, images: list[torch.Tensor]) -> Result:
    import numpy as np

    from autoprune.graph import analyze, mask, prune

    @torch.no_grad()
    def forward() -> None:
        model(images)

    plain, seconds = fastest(forward, lambda: analyze(model, (images,)), times=15)
    graph = analyze(model, (images,))
    keep = {name: group.units[::2].ravel().tolist() for name, group in graph.prunable.items()}
    (candidate,) = fastest(lambda: prune(model, graph, keep))
    widths = np.tile(graph.cost.dense, (200_000, 1))
    (costing,) = fastest(lambda: graph.cost.flops(widths), times=3)
    figures = {
        "groups": len(graph.prunable),
        "channels": sum(group.width for group in graph.prunable.values()),
        "seconds": seconds,
        "forward": plain,
        "candidate": candidate,
        "policies_per_second": 200_000 / costing,
    }
    return Result(figures, prune(model, graph, keep), mask(model, graph, keep))


def run_torch_pruning(model: nn.Module, images: list[torch.Tensor]) -> Result:
    import torch_pruning as tp

    def started() -> Any:
        copied = copy.deepcopy(model)
        ignored = [m for n, m in copied.named_modules() if any(p in n for p in PREDICTIONS)]
        return tp.pruner.MagnitudePruner(
            copied, images, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=ignored,
            forward_fn=lambda m, x: m(x),
        )  # fmt: skip

    (seconds,) = fastest(started, times=2)
    (candidate,) = fastest(lambda: started().step(), times=2)
    pruner = started()
    names = {module: name for name, module in pruner.model.named_modules()}
    kept: dict[str, list[int]] = {}
    removed: dict[str, list[int]] = {}
    widths = []
    for group in pruner.step(interactive=True):
        widths.append(pruner.DG.get_out_channels(group[0].dep.target.module))
        for dep, indices in group.items:
            module = dep.target.module
            if module in names and pruner.DG.is_out_channel_pruning_fn(dep.handler):
                # Indices refer to the channels that remain.
                name, positions = names[module], {getattr(i, "idx", i) for i in indices}
                remaining = kept.get(name) or list(range(pruner.DG.get_out_channels(module)))
                kept[name] = [channel for k, channel in enumerate(remaining) if k not in positions]
                removed[name] = removed.get(name, []) + [remaining[k] for k in positions]
        group.prune()
    figures = {"groups": len(widths), "channels": sum(widths), "seconds": seconds, "candidate": candidate}
    return Result(figures, pruner.model, without(model, removed))


def run_fastnas(model: nn.Module, images: list[torch.Tensor]) -> Result:
    import modelopt.torch.nas as mtn
    from modelopt.torch.opt.utils import named_hparams
    from modelopt.torch.prune.pruning import PruneModeRegistry

    def converted() -> Any:
        return mtn.convert(copy.deepcopy(model), "fastnas", registry=PruneModeRegistry)

    (seconds,), space = fastest(converted, times=2), converted()
    widths = [hparam.max for _, hparam in named_hparams(space, configurable=True)]
    mtn.sample(space, sample_func=lambda choices: min(choices, key=lambda n: abs(n - max(choices) / 2)))
    pruned = mtn.export(space)
    removed = {  # it keeps the first channels of each layer
        name: list(range(outputs_of(module), outputs_of(model.get_submodule(name))))
        for name, module in pruned.named_modules()
        if isinstance(module, (*LAYERS, *NORMS))
    }
    figures = {"groups": len(widths), "channels": sum(widths), "seconds": seconds}
    return Result(figures, pruned, without(model, removed))


def outputs_of(module: nn.Module) -> int:
    """Number of channels that a layer or norm outputs."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    # A transposed convolution has them on its second axis, divided by its groups.
    return weight.shape[1] * module.groups if isinstance(module, nn.ConvTranspose2d) else weight.shape[0]


@torch.no_grad()
def difference(pruned: nn.Module, masked: nn.Module, images: list[torch.Tensor]) -> float:
    """Largest relative difference between outputs of the layers of unpruned width, in double precision."""

    def outputs(model: nn.Module, names: list[str]) -> list[torch.Tensor]:
        tensors: list[torch.Tensor] = []
        for name in names:
            model.get_submodule(name).register_forward_hook(lambda _m, _i, out: tensors.append(out))
        model.double()([image.double() for image in images])
        return tensors

    names = [
        name
        for name, module in masked.named_modules()
        if isinstance(module, LAYERS) and outputs_of(module) == outputs_of(pruned.get_submodule(name))
    ]
    got, expected = outputs(pruned, names), outputs(masked, names)
    if [x.shape for x in got] != [x.shape for x in expected]:
        return math.inf
    differences = [
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True) if b.any()
    ]
    return max(differences, default=math.nan)


TOOLS = {"autoprune": run_autoprune, "torch-pruning": run_torch_pruning, "fastnas": run_fastnas}


def work(tool: str, name: str, norm: str) -> None:
    """Runs one case in this process and prints its result."""
    warnings.simplefilter("ignore")
    limit_memory(GIBIBYTES)
    model, images = build(name, norm)
    result: dict[str, Any] = {"works": False, "error": "nothing to prune"}
    try:
        figures, pruned, masked = TOOLS[tool](model, images)
        result |= {**figures, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        with torch.no_grad():
            pruned(images)
        before, after = (sum(p.numel() for p in m.parameters()) for m in (model, pruned))
        result["works"] = after < before
        result["difference"] = difference(pruned, masked, images)
    except Exception as error:
        result["error"] = first_line(error)
    print_result(result)


def ratios(results: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> None:
    """Prints the figures of RetinaNet-R50 that a search depends on, and the memory."""
    ours = results.get(("retinanet_resnet50_fpn", "frozen", "autoprune"))
    if ours and ours["works"]:
        print(f"analysis / forward: {ours['seconds'] / ours['forward']:.2f} ({ours['seconds']:.3f} s)")
        theirs = results.get(("retinanet_resnet50_fpn", "batch", "torch-pruning"), {})
        ratio = f"{theirs['candidate'] / ours['candidate']:.1f}" if theirs.get("works") else "-"
        print(f"torch-pruning / autoprune, one candidate: {ratio} ({ours['candidate']:.3f} s)")
        print(f"policies costed per second: {ours['policies_per_second']:,.0f}")
    peaks = [r["mib"] for (_, _, tool), r in results.items() if tool == "autoprune" and "mib" in r]
    if peaks:
        print(f"largest peak memory of autoprune: {max(peaks):.0f} MiB")


def row(name: str, norm: str, tool: str, r: Mapping[str, Any]) -> str:
    """A line of the table."""
    line = f"{name:38}{norm:7}{tool:14}{'yes' if r['works'] else 'no':6}"
    if "mib" in r:
        line += f"{r['groups']:>7}{r['channels']:>9}{r['seconds']:>7.2f}{r['mib']:>6.0f}"
    if "difference" in r:
        line += f"  {r['difference']:.0e}"
    return line if r["works"] else f"{line}  {r['error'][:90]}"


def main() -> None:
    """Runs all cases and prints the ratios first, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--models", nargs="*", help="detectors; default: all of torchvision's")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    results = {}
    for name in options.models or list_models(detection):
        for norm in ("batch", "frozen"):
            for tool in options.tools:
                python = sys.executable if tool == "autoprune" else options.peer_python
                command = [python, __file__, "--work", tool, name, norm]
                results[name, norm, tool] = run_isolated(command, SECONDS)
                print(row(name, norm, tool, results[name, norm, tool]), file=sys.stderr, flush=True)
    for tool in options.tools:
        of_tool = [result for (_, _, t), result in results.items() if t == tool]
        exact = sum(result["works"] and result.get("difference", math.inf) < 1e-9 for result in of_tool)
        print(f"{tool}: {sum(r['works'] for r in of_tool)} of {len(of_tool)} work, {exact} exactly")
    ratios(results)
    head = f"{'detector':38}{'norm':7}{'tool':14}{'works':6}{'groups':>7}{'channels':>9}"
    print(f"\n{head}{'s':>7}{'MiB':>6}  difference")
    for key, result in results.items():
        print(row(*key, result))


if __name__ == "__main__":
    main()
