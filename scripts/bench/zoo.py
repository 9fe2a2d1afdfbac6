"""Pruning of every model in torchvision but detectors (graph.py) and quantized ones, compared with masking.

Each model runs in a process of its own, one thread, with limits on time and memory, with random weights, on
the smallest of a few inputs that it accepts in eval and in training mode. Random units of all prunable groups
are removed. Results must equal those of the masked model in eval mode and, without dropout, in training mode;
multiply-adds and parameters must equal torch's own counts:

    python scripts/bench/zoo.py --models resnet18 vit_b_16
"""

import argparse
import inspect
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from isolated import first_line, limit_memory, print_result, run_isolated

SECONDS, GIBIBYTES = 300, 10
# Parameters up to which three copies in double precision fit into the memory limit.
DOUBLE = 350_000_000
SIZES = (64, 112, 128, 224, 299)
FRAMES = (8, 16)


def names() -> list[str]:
    """Every model of the table."""
    from torchvision import models

    return [name for space in _spaces() for name in models.list_models(space)]


def _spaces() -> list[Any]:
    from torchvision import models

    return [models, models.segmentation, models.video, models.optical_flow]


def candidates(name: str) -> Iterator[tuple[dict[str, Any], list[tuple[int, ...]]]]:
    """Builder arguments and input shapes to try, the cheapest first."""
    from torchvision import models

    space = next(space for space in _spaces() if name in models.list_models(space)).__name__
    for size in SIZES:
        for frames in FRAMES if space.endswith("video") else (0,):
            clip = [frames] if frames else []
            shapes = [(3, *clip, size, size)] * (2 if space.endswith("optical_flow") else 1)
            yield {}, shapes
            yield {"image_size": size}, shapes
            yield {"input_size": (size, size)}, shapes
            yield {"spatial_size": (size, size), "temporal_size": frames}, shapes


def build(name: str) -> tuple[Any, list[tuple[int, ...]]]:
    """The model, and the shapes of inputs that it accepts: one sample in eval mode, two in training mode."""
    import torch
    from torchvision import models

    plain: Any = None
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    none = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    for arguments, shapes in candidates(name):
        try:
            if arguments:
                model = models.get_model(name, **none, **arguments)
            else:
                model = plain = plain or models.get_model(name, **none)
            disable_dropout(model)
            with torch.no_grad():
                model.eval()(*draw(shapes, 1))
                model.train()(*draw(shapes, 2))
        except (TypeError, ValueError, RuntimeError, AssertionError):
            continue
        return model.eval(), shapes
    raise RuntimeError(f"{name} runs on none of the inputs tried")


def draw(shapes: list[tuple[int, ...]], batch: int, dtype: Any = None) -> tuple[Any, ...]:
    """Random inputs, always the same."""
    import torch

    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.rand(batch, *shape, generator=generator).to(dtype) for shape in shapes)


def disable_dropout(model: Any) -> None:
    """Disables dropout of all kinds, so that results in training mode can be compared."""
    for module in model.modules():
        for attribute in ("p", "dropout", "dropout_p", "attention_dropout", "stochastic_depth_prob"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)


def precision(model: Any, shapes: list[tuple[int, ...]]) -> Any:
    """Double precision if memory and the model's code allow it."""
    import torch

    if sum(p.numel() for p in model.parameters()) > DOUBLE:
        return torch.float32
    try:
        with torch.no_grad():
            model.double()(*draw(shapes, 1, torch.float64))
    except RuntimeError:
        return torch.float32
    return torch.float64


def randomize(model: Any) -> None:
    """Draws norms, biases and whatever else starts as a constant, so that none is a silent 0 or 1."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        if tensor.dim() == 1 or bool((tensor == tensor.flatten()[0]).all()):
            low, high = (0.5, 1.5) if name.endswith(("weight", "var", "scale")) else (-0.2, 0.3)
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)


def outputs(model: Any, inputs: tuple[Any, ...], depth: int = 2) -> list[tuple[str, Any]]:
    """All tensors that the model and its children down to ``depth`` return."""
    import torch
    from torch.utils._pytree import tree_leaves

    tensors: list[tuple[str, Any]] = []
    handles = []
    for name, module in model.named_modules():
        if (name.count(".") + 1 if name else 0) <= depth:

            def hook(_module: Any, _inputs: Any, out: Any, name: str = name) -> None:
                # A copy: the next layer may work in place.
                tensors.extend((name, x.clone()) for x in tree_leaves(out) if isinstance(x, torch.Tensor))

            handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tensors


def distance(got: list[tuple[str, Any]], expected: list[tuple[str, Any]]) -> float:
    """Largest max|got - expected| / max|expected| of the tensors of equal shape; the last one must be."""
    if [name for name, _ in got] != [name for name, _ in expected] or got[-1][1].shape != expected[-1][
        1
    ].shape:
        return float("inf")
    worst = 0.0
    for (_, a), (_, b) in zip(got, expected, strict=True):
        if a.shape == b.shape:
            relative = float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
            worst = max(worst, relative if relative == relative else float("inf"))
    return worst


def work(name: str) -> dict[str, Any]:
    """Runs one model in this process."""
    import numpy as np
    import torch

    from autoprune.graph import analyze, mask, prune
    from autoprune.modules.attention import flop_counter

    torch.set_num_threads(1)
    torch.manual_seed(0)
    # The fused layer of torch's attention modules hides its products from FlopCounterMode.
    torch.backends.mha.set_fastpath_enabled(False)
    model, shapes = build(name)
    randomize(model)

    inputs = draw(shapes, 1)
    start = time.perf_counter()
    with torch.no_grad():
        model(*inputs)
    forward = time.perf_counter() - start
    start = time.perf_counter()
    graph = analyze(model, inputs)
    seconds = time.perf_counter() - start

    rng = np.random.default_rng(1)
    keep = {}
    for group_name, group in graph.prunable.items():
        count = len(group.units)
        kept = rng.choice(count, rng.integers(1, count + 1), replace=False)
        keep[group_name] = sorted(group.units[kept].ravel().tolist())
    widths = graph.vector({group: len(kept) for group, kept in keep.items()})

    dtype = precision(model, shapes)
    model.to(dtype)
    masked = mask(model, graph, keep)
    expected = outputs(masked, draw(shapes, 1, dtype))
    expected_training = outputs(masked.train(), draw(shapes, 2, dtype))
    del masked
    pruned = prune(model, graph, keep)
    off = distance(outputs(pruned, draw(shapes, 1, dtype)), expected)
    with torch.no_grad(), flop_counter() as counter:
        pruned(*draw(shapes, 1, dtype))
    try:
        off_training = distance(outputs(pruned.train(), draw(shapes, 2, dtype)), expected_training)
        failed = None
    except Exception as error:
        off_training, failed = float("inf"), first_line(error)

    channels = sum(group.width for group in graph.groups.values())
    free = sum(group.width for group in graph.prunable.values())
    flops, params = int(graph.cost.flops(widths)), int(graph.cost.params(widths))
    counted = counter.get_total_flops() // 2, sum(p.numel() for p in pruned.parameters())
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    # Norms over a batch of two samples amplify round-off.
    bound_training = 1e3 * bound
    problems = [
        *([f"eval off by {off:.1e}"] if not off <= bound else []),
        *(
            [f"training: {failed or f'off by {off_training:.1e}'}"]
            if not off_training <= bound_training
            else []
        ),
        *([f"{flops} multiply-adds, {counted[0]} counted"] if flops != counted[0] else []),
        *([f"{params} parameters, {counted[1]} counted"] if params != counted[1] else []),
    ]
    reasons = Counter({g.reason: 0 for g in graph.groups.values() if not g.prunable})
    for group in graph.groups.values():
        if not group.prunable:
            reasons[group.reason] += group.width
    return {
        "works": not problems,
        "error": "; ".join(problems),
        "groups": len(graph.prunable),
        "prunable": free,
        "channels": channels,
        "off": off,
        "off_training": off_training,
        "double": dtype == torch.float64,
        "input": "+".join("x".join(map(str, shape)) for shape in shapes),
        "forward": forward,
        "analysis": seconds,
        "reasons": reasons.most_common(),
    }


def report(rows: dict[str, dict[str, Any]], reasons: bool) -> None:
    """Prints the summary, then the table."""
    done = [r for r in rows.values() if "groups" in r]
    exact = [r for r in rows.values() if r["works"] and r["groups"]]
    free, channels = (sum(r[key] for r in done) for key in ("prunable", "channels"))
    fractions = sorted(r["prunable"] / r["channels"] for r in done)
    print(f"{len(exact)} of {len(rows)} prune, exact in results, training mode and cost")
    if done:
        print(
            f"channels that can be removed (of prunable groups / of all groups, last layers too): "
            f"{free / channels:.1%} of all, median model {fractions[len(fractions) // 2]:.1%}, "
            f"smallest {fractions[0]:.1%}"
        )
    print(f"\n{'model':31}{'input':>24}{'groups':>7}{'prunable / channels':>21}{'fraction':>10}"
          f"{'eval off':>10}{'train off':>10}{'analysis':>9}{'/ fwd':>7}")  # fmt: skip
    for name, r in rows.items():
        if "groups" not in r:
            print(f"{name:31}  fails: {r['error']}")
            continue
        of = f"{r['prunable']} / {r['channels']}"
        print(f"{name:31}{r['input']:>24}{r['groups']:>7}{of:>21}{r['prunable'] / r['channels']:>10.0%}"
              f"{r['off']:>10.1e}{r['off_training']:>10.1e}{r['analysis']:>8.2f}s"
              f"{r['analysis'] / r['forward']:>7.1f}"
              f"{'' if r['double'] else '  float32'}"
              f"{'' if r['works'] else '  WRONG: ' + r['error']}")  # fmt: skip
        if reasons or not r["groups"]:
            for reason, count in r["reasons"]:
                print(f"    {count:>7} channels: {reason}")


def main() -> None:
    """Runs all models and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="*", help="names; default: all of torchvision's")
    parser.add_argument("--reasons", action="store_true", help="list for each model what is frozen, and why")
    options = parser.parse_args()
    if options.work:
        warnings.simplefilter("ignore")
        limit_memory(GIBIBYTES)
        print_result(work(options.work))
        return
    rows = {}
    for name in options.models or names():
        rows[name] = run_isolated([sys.executable, __file__, "--work", name], SECONDS)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report(rows, options.reasons)
    sys.exit(not all(r["works"] for r in rows.values()))


if __name__ == "__main__":
    main()
