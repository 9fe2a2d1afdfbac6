"""How much of each vendor's detector can be pruned, why not more, and what the analysis takes.

Each detector runs in a process of its own, one thread, with limits on time and memory:

    python scripts/bench/prunable.py --detectors hf/rtdetr-r18 ul/yolo11n

`goes` is the multiply-adds that go at a pruning ratio of 0.93 in every prunable group, over those that would
go if the inputs and outputs of every layer could lose as much: a convolution or linear layer would keep 0.07
of both, an attention product 0.07 of its heads' channels. `off` is max|pruned - masked| / max|masked| over
the outputs in double precision, at a random policy. Below each detector, the fraction of the multiply-adds
that stays on account of each reason; `whole units` is what small groups keep as they keep one unit at least.
Times are those of the processor.
"""

import argparse
import re
import sys
import time
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from isolated import first_line, limit_memory, print_result, run_isolated
from prunable_zoo import ZOO, build
from zoo import randomize

SECONDS, GIBIBYTES, RATIO = 1200, 10, 0.93


def ideal(name: str, args: tuple[Any, ...]) -> list[float]:
    """Kept fraction of each cost of an op in a fully prunable network."""
    kept = 1 - RATIO
    if name == "convolution":
        return [kept if args[-1] > 1 else kept**2]
    if name == "torchvision::deform_conv2d":
        return [kept**2]
    if "scaled_dot_product" in name:
        return [kept, kept]
    if name in ("mm", "addmm"):
        return [kept**2]
    return [kept] if name in ("bmm", "baddbmm") else []


class Fractions:
    """What goes at the largest ratios, and why not more.

    Args:
        model, inputs: the detector.
        graph, traced: its graph, and the trace that it is from.
    """

    def __init__(self, model: torch.nn.Module, inputs: tuple[Any, ...], graph: Any, traced: Any) -> None:
        from autoprune.graph.solve import _Solver
        from autoprune.modules.run_modes import eval_then_restore
        from autoprune.ops.op_dispatch import OpDispatch

        solver = _Solver(traced)
        ideals: list[float] = []
        dispatch = OpDispatch(lambda _f, entry, args, _k, _o: ideals.extend(ideal(entry.name, args)))
        with eval_then_restore(model), torch.no_grad(), dispatch:
            model(*inputs)
        costs = traced.constraints.costs
        assert len(ideals) == len(costs), (len(ideals), len(costs))
        kept = np.ones(traced.constraints.size)  # of each atom, by its unit
        why = np.full(traced.constraints.size, -1)
        texts: list[str] = []
        for group in graph.groups.values():
            axis = traced.axes[group.members[0].tensor, group.members[0].axis]
            assert axis is not None
            units = np.unique(solver.unit[axis[group.members[0].channels >= 0]])
            count = len(group.units)
            if group.prunable:
                kept[units] = max(1, round((1 - RATIO) * count)) / count
            why[units] = len(texts)
            texts.append("whole units" if group.prunable else group.reason or "")
        total = goes = could = 0.0
        reasons: defaultdict[str, float] = defaultdict(float)
        for (constant, axes), least in zip(costs, ideals, strict=True):
            dense, stays = float(constant), float(constant)
            blamed: list[str] = []
            for axis in axes:
                fractions = kept[solver.unit[axis]]
                dense *= len(axis)
                stays *= fractions.sum()
                numbers, counts = np.unique(why[solver.unit[axis]], return_counts=True)
                number = numbers[counts.argmax()]
                if fractions.mean() > 2 * (1 - RATIO) and number >= 0:
                    blamed.append(texts[number])
            total, goes, could = total + dense, goes + dense - stays, could + dense * (1 - least)
            lost = stays - dense * least
            for reason in blamed or ["fixed"]:
                reasons[reason] += lost / len(blamed or [1])
        self.total, self.fraction = total, goes / could
        self.reasons = {
            reason: lost / could
            for reason, lost in sorted(reasons.items(), key=lambda item: -item[1])
            if abs(lost) > 0.005 * could
        }


def work(name: str, pixels: int | None = None) -> dict[str, Any]:
    """Runs one detector in this process, on an image with a side of ``pixels`` if given."""
    from autoprune import graph as package
    from autoprune.graph import analyze, mask, prune
    from autoprune.modules.tensor_tree import tensors_within

    torch.set_num_threads(1)
    model, images = build(name, pixels)
    inputs: tuple[Any, ...] = images
    randomize(model)

    @torch.no_grad()
    def forward() -> float:
        start = time.process_time()
        model(*inputs)
        return time.process_time() - start

    traces: list[Any] = []
    trace = vars(package)["trace"]

    def kept_trace(*given: Any) -> Any:
        traces.append(trace(*given))
        return traces[-1]

    vars(package)["trace"] = kept_trace  # that of `analyze` is not returned
    analyze(torch.nn.Conv2d(3, 2, 1), (torch.rand(1, 3, 4, 4),))  # imports what torch needs
    plain = min(forward() for _ in range(5))
    start = time.process_time()
    graph = analyze(model, inputs)
    analysis = time.process_time() - start
    plain = min(plain, *(forward() for _ in range(5)))
    fractions = Fractions(model, inputs, graph, traces[-1])

    rng = np.random.default_rng(1)
    keep = {}
    for group_name, group in graph.prunable.items():
        units = rng.choice(len(group.units), rng.integers(1, len(group.units) + 1), replace=False)
        keep[group_name] = sorted(group.units[units].ravel().tolist())
    model.double()
    inputs = tuple(x.double() for x in inputs)
    off = 0.0
    with torch.no_grad():
        got, expected = (list(tensors_within(make(model, graph, keep)(*inputs))) for make in (prune, mask))
    for a, b in zip(got, expected, strict=True):
        if b.is_floating_point():
            off = max(off, float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)))
    return {
        "works": off <= 1e-9,
        "error": f"off by {off:.0e}",
        "fraction": fractions.fraction,
        "mmacs": fractions.total / 1e6,
        "groups": len(graph.prunable),
        "off": off,
        "forward": plain,
        "analysis": analysis,
        "reasons": fractions.reasons,
    }


def main() -> None:
    """Runs all detectors and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--detectors", nargs="*", help="default: all")
    parser.add_argument(
        "--pixels", type=int, help="side of the image; default: a small one. Not all take any"
    )
    parser.add_argument("--long", action="store_true", help="reasons in full")
    options = parser.parse_args()
    if options.work:
        warnings.simplefilter("ignore")
        limit_memory(GIBIBYTES)
        try:
            print_result(work(options.work, options.pixels))
        except Exception as error:
            if options.long:
                raise
            print_result({"works": False, "error": first_line(error)})
        return
    head = f"{'detector':20}{'MMACs':>8}{'groups':>7}{'goes':>7}{'off':>8}"
    print(f"{head}{'forward':>9}{'analysis':>9}{'/ fwd':>7}")
    for name in options.detectors or ZOO:
        size = [] if options.pixels is None else ["--pixels", str(options.pixels)]
        r = run_isolated([sys.executable, __file__, "--work", name, *size], SECONDS)
        if "fraction" not in r:
            print(f"{name:20}  fails: {r['error']}", flush=True)
            continue
        line = f"{name:20}{r['mmacs']:>8.0f}{r['groups']:>7}{r['fraction']:>7.2f}{r['off']:>8.0e}"
        line += f"{r['forward']:>8.3f}s{r['analysis']:>8.2f}s{r['analysis'] / r['forward']:>7.0f}"
        print(line if r["works"] else f"{line}  WRONG")
        for reason, lost in r["reasons"].items():
            text = reason if options.long else re.sub(r"\s+", " ", reason)[:100]
            print(f"    {lost:>6.1%}  {text}", flush=True)


if __name__ == "__main__":
    main()
