"""Channel groups on every torchvision detector, against torch-pruning and FastNAS of nvidia-modelopt.

Each case runs in a process of its own, one thread, with a limit on time and memory; peers may live in
another environment:

    python scripts/bench/graph.py --peer-python /path/to/venv/bin/python
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

SECONDS, GIBIBYTES = 180, 12
TOOLS = ("autoprune", "torch-pruning", "fastnas")


def build(name: str, norm: str) -> Any:
    """A detector for 64-pixel images, with trainable or frozen batch norms, weights at random."""
    import torch
    from torchvision.models import detection
    from torchvision.ops import FrozenBatchNorm2d

    def freeze(module: Any) -> None:
        for key, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
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


def fastest(work: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the fastest of several runs."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def run_autoprune(model: Any, images: Any) -> dict[str, Any]:
    import numpy as np
    import torch

    from autoprune.graph import analyze, prune

    with torch.no_grad():
        forward = fastest(lambda: model(images))
    seconds = fastest(lambda: analyze(model, (images,)))
    graph = analyze(model, (images,))
    keep = {name: group.units[::2].ravel().tolist() for name, group in graph.prunable.items()}
    pruning = fastest(lambda: prune(model, graph, keep))
    with torch.no_grad():
        prune(model, graph, keep)(images)
    widths = np.tile(graph.cost.dense, (200_000, 1))
    return {
        "groups": len(graph.prunable),
        "channels": sum(group.width for group in graph.prunable.values()),
        "forward": forward,
        "analysis": seconds,
        "candidate": pruning,
        "policies_per_second": 200_000 / fastest(lambda: graph.cost.flops(widths), 3),
    }


def run_torch_pruning(model: Any, images: Any) -> dict[str, Any]:
    import copy

    import torch
    import torch_pruning as tp

    predictions = (
        *("cls_logits", "bbox_reg", "bbox_ctrness", "cls_score", "bbox_pred", "mask_fcn_logits"),
        *("kps_score_lowres", "regression_head.module_list", "classification_head.module_list"),
    )

    def candidate() -> tuple[Any, Any]:
        copied = copy.deepcopy(model)
        ignored = [m for n, m in copied.named_modules() if any(p in n for p in predictions)]
        pruner = tp.pruner.MagnitudePruner(
            copied, images, tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=ignored,
            forward_fn=lambda m, x: m(x),
        )  # fmt: skip
        return copied, pruner

    start = time.perf_counter()
    copied, pruner = candidate()
    built = time.perf_counter() - start
    found = pruner.DG.get_all_groups(
        ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
    )
    groups = [len(group[0].idxs) for group in found]
    start = time.perf_counter()
    pruner.step()
    stepped = time.perf_counter() - start
    with torch.no_grad():
        copied(images)
    return {"groups": len(groups), "channels": sum(groups), "analysis": built, "candidate": built + stepped}


def run_fastnas(model: Any, images: Any) -> dict[str, Any]:
    import modelopt.torch.nas as mtn
    import torch

    start = time.perf_counter()
    converted = mtn.convert(model, mode="fastnas")
    seconds = time.perf_counter() - start
    space = {
        name: hparam
        for name, hparam in mtn.utils.named_hparams(converted, configurable=True)
        if "out_channels" in name or "out_features" in name
    }
    mtn.utils.sample(converted, sample_func=min)
    with torch.no_grad():
        converted(images)
    return {"groups": len(space), "channels": sum(h.max for h in space.values()), "analysis": seconds}


def work(tool: str, name: str, norm: str) -> None:
    """One case, in this process; prints a line of JSON."""
    warnings.simplefilter("ignore")
    limit = GIBIBYTES << 30
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    model, images = build(name, norm)
    runner = {"autoprune": run_autoprune, "torch-pruning": run_torch_pruning, "fastnas": run_fastnas}[tool]
    try:
        result = {"works": True, **runner(model, images)}
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        result = {"works": False, "said": f"{type(error).__name__}: {said}"[:110]}
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT" + json.dumps(result))


def case(python: str, tool: str, name: str, norm: str) -> dict[str, Any]:
    """One case in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [python, __file__, "--work", tool, name, norm]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return {"works": False, "said": f"not done after {SECONDS} s"}
    for line in done.stdout.splitlines():
        if line.startswith("RESULT"):
            found: dict[str, Any] = json.loads(line.removeprefix("RESULT"))
            return found
    said = (done.stderr.strip().splitlines() or ["killed"])[-1]
    return {"works": False, "said": f"exit {done.returncode}: {said}"[:110]}


def main() -> None:
    """Runs all cases and prints the ratios first, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--models", nargs="*", help="detectors; all of torchvision's if left out")
    parser.add_argument("--tools", nargs="*", default=TOOLS, choices=TOOLS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    from torchvision.models import detection, list_models

    rows = []
    for name in options.models or list_models(detection):
        for norm in ("batch", "frozen"):
            for tool in options.tools:
                python = sys.executable if tool == "autoprune" else options.peer_python
                rows.append((name, norm, tool, case(python, tool, name, norm)))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    found = {(name, norm, tool): result for name, norm, tool, result in rows}
    ours = found.get(("retinanet_resnet50_fpn", "frozen", "autoprune"), {})
    if ours.get("works"):
        print(f"analysis / forward    {ours['analysis'] / ours['forward']:.2f}  ({ours['analysis']:.3f} s)")
        theirs = found.get(("retinanet_resnet50_fpn", "batch", "torch-pruning"), {})
        ratio = f"{theirs['candidate'] / ours['candidate']:.1f}" if theirs.get("works") else "-"
        print(f"torch-pruning / ours, one candidate    {ratio}  ({ours['candidate']:.3f} s)")
        print(f"policies costed per second    {ours['policies_per_second']:,.0f}")
    for tool in options.tools:
        of_tool = [result for _, _, t, result in rows if t == tool]
        print(f"{tool}: {sum(r['works'] for r in of_tool)} of {len(of_tool)} work")
    print(f"\n{'detector':38}{'norm':8}{'tool':15}{'groups':>7}{'channels':>9}{'s':>8}{'MiB':>7}")
    for name, norm, tool, r in rows:
        figures = (
            f"{r['groups']:>7}{r['channels']:>9}{r['analysis']:>8.2f}{r['peak_mib']:>7.0f}"
            if r["works"] else f"  fails: {r['said']}"
        )  # fmt: skip
        print(f"{name:38}{norm:8}{tool:15}{figures}")


if __name__ == "__main__":
    main()
