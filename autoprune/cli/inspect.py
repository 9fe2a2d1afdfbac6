"""`autoprune inspect`: the channel groups of a detector, their cost, and their widths under a policy."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.detectors import (
    COCO_CLASSES,
    FALLBACK_SIZE,
    NamedDetector,
    build_dense,
    input_size_of,
    resolve_all,
)
from autoprune.cli.settings import refuse_useless, with_config
from autoprune.cli.terminal import show_table, tell, working
from autoprune.config import Config
from autoprune.errors import ConfigError, PolicyError
from autoprune.progress import command_line, count_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from torch import nn

    from autoprune.graph import ChannelGraph
    from autoprune.policy import Policy


@with_config(
    "Detector",
    described={
        "num_classes": f"that of the weights, or {COCO_CLASSES}",
        "input_size": "the detector's own; {}x{} where it states none".format(*FALLBACK_SIZE),
    },
)
def inspect(
    config: Config,
    flags: set[str],
    detector: Annotated[
        str | None,
        typer.Argument(
            metavar="DETECTOR",
            help="A detector's name, a policy file, or a folder with a policy.yaml; default: --model.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Show what this policy keeps.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    names: Annotated[bool, typer.Option("--list", help="List the names of all detectors.")] = False,
) -> None:
    """Show the channel groups of a detector: width, fraction of the cost, what is frozen and why."""
    if names:
        refuse_useless(flags, flags - {"names", "as_json", "detector"}, "with --list; omit one of them")
        if detector is not None:
            raise ConfigError(f"--list names all detectors, and {detector} is one; omit one of them")
        _list(as_json)
        return
    with working(quiet=as_json) as console:
        report = _report(config, flags, detector, policy)
        if not as_json:
            _show(console, report)
    if as_json:
        print(json.dumps(report, indent=2))


def _list(as_json: bool) -> None:
    """Prints the names of all detectors, and the libraries whose detectors can be named, too."""
    from autoprune import detectors, vendors

    known, libraries = detectors.names(), vendors.libraries()
    if as_json:
        print(json.dumps({"detectors": known, "libraries": [asdict(each) for each in libraries]}, indent=2))
        return
    width = max(len(each.example) for each in libraries)
    lines = [
        f"{each.example:{width}}  {'installed' if each.installed else each.install}" for each in libraries
    ]
    heading = "Of other libraries, LIBRARY:SOURCE, such as"
    print("\n".join([*known, "", heading, *lines, "", "Your own: package.module:function"]))


def _report(
    config: Config, flags: set[str], argument: str | None, policy_file: Path | None
) -> dict[str, Any]:
    """The report, as plain values."""
    from autoprune.detectors import detector_inputs, pixel_resizing
    from autoprune.graph import analyze
    from autoprune.images.decode import resized_size
    from autoprune.policy import Policy
    from autoprune.space.file import ready_space

    if argument is None and policy_file is not None and "model" not in config.model_fields_set:
        argument, policy_file = f"{policy_file.parent}/{policy_file.name}", None
    detector = resolve_all([] if argument is None else [argument], config, flags)[0]
    if detector.policy is not None:
        reason = f"with {argument}, which has a policy; omit one of them"
        refuse_useless(flags if policy_file is not None else (), {"policy"}, reason)
    if policy_file is not None:
        given = Policy.load(policy_file)
        _check_same_model(given, policy_file, detector, config)
        detector = replace(detector, policy=given)  # it says what was not given, such as the classes
    policy = detector.policy
    model, spec = build_dense(detector, config)
    size = of_policy = input_size_of(detector, model, config)
    if policy is not None and policy.resize is not None and config.input_size is None:
        # the policy's size is that of its smaller images; the dense detector is counted at its own
        size = resized_size(size, pixel_resizing(model))
    graph = analyze(model, detector_inputs(size))
    pruned, widths = None, None
    if policy is not None:
        smaller = policy.resized(model)
        counted = graph if policy.resize is None else analyze(smaller, detector_inputs(of_policy))
        if of_policy == policy.input_size:  # the warning; what is shown is computed here
            policy = policy.with_costs(counted, policy_file or argument or "the policy")
        policy.check(counted)
        widths = policy.kept_widths
        costs = {"gflops": counted.gflops(widths), "mparams": counted.mparams(widths)}
        pruned = {**costs, **_sizes(smaller, of_policy)}
    ready = ready_space(spec.name)
    return {
        "model": spec.model_dump(),
        **_sizes(model, size),
        "gflops": graph.gflops(),
        "mparams": graph.mparams(),
        "pruned": pruned,
        "ready_space": None if ready is None else str(ready),
        "groups": _groups(graph, widths),
    }


def _sizes(model: "nn.Module", size: tuple[int, int]) -> dict[str, list[int]]:
    """Height and width of the image that costs are counted at, and of what the network sees of it."""
    from autoprune.detectors.inputs import network_size

    return {"input_size": list(size), "network_size": list(network_size(model.eval(), size))}


def _check_same_model(policy: "Policy", file: Path, detector: NamedDetector, config: Config) -> None:
    """Refuses a policy beside settings of another detector than the one it is for.

    Raises:
        PolicyError: names the first setting that differs.
    """
    spec, given = policy.model, config.model_fields_set
    if detector.spec.name != spec.name:
        raise PolicyError(
            f"the policy is for another model: {file} is for {spec.name}, not {detector.spec.name}; "
            f"`{command_line('inspect', file)}` takes its own"
        )
    for name in ("model_arguments", "num_classes"):
        of_policy, value = getattr(spec, name.removeprefix("model_")), getattr(config, name)
        if name in given and value not in (None, of_policy):
            raise PolicyError(
                f"the policy is for another model: {name} of {file} is {of_policy}, not {value}; "
                f"`{command_line('inspect', file)}` takes its own"
            )


def _groups(graph: "ChannelGraph", widths: dict[str, int] | None) -> list[dict[str, Any]]:
    """One entry per channel group, in the order of the forward pass.

    ``gflops_share`` is the fraction of the dense cost that removing the whole group would save. Each product
    of two groups' widths counts for both, so the fractions sum to more than one. ``emptied_gflops_share`` is
    what emptying the group saves, with what only it is made from; ``None`` where that can't be done.
    """
    import numpy as np

    cost = graph.cost
    without = np.tile(cost.dense, (len(cost.names), 1))
    np.fill_diagonal(without, 0)
    flops = 1 - cost.flops(without) / cost.flops(cost.dense)
    params = 1 - cost.params(without) / cost.params(cost.dense)
    fractions = {name: (float(flops[i]), float(params[i])) for i, name in enumerate(cost.names)}
    return [
        {
            "name": name,
            "width": group.width,
            "kept": group.width if widths is None else widths.get(name, group.width),
            "unit": group.unit,
            "members": [
                {"tensor": name, "axis": axis, "channels": int((index >= 0).sum()), "role": role}
                for (name, axis, index), role in zip(group.members, group.roles, strict=True)
            ],
            "gflops_share": fractions[name][0] if name in fractions else None,
            "mparams_share": fractions[name][1] if name in fractions else None,
            "prunable": group.prunable,
            "reason": group.reason,
            "can_empty": group.can_empty,
            "empty_reason": group.empty_reason,
            "emptied_gflops_share": 1 - graph.gflops({name: 0}) / graph.gflops() if group.can_empty else None,
        }
        for name, group in graph.groups.items()
    ]


def _show(console: "Console", report: dict[str, Any]) -> None:
    from autoprune.detectors.inputs import sizes_text

    spec, pruned = report["model"], report["pruned"]
    size = sizes_text(report["input_size"], report["network_size"])
    if pruned is not None and pruned["network_size"] != report["network_size"]:
        size += f", pruned at {sizes_text(pruned['input_size'], pruned['network_size'])}"
    console.print(
        f"{spec['name']}, {spec['num_classes']} classes with the background, {spec['norm']} norms, "
        f"counted at {size}"
    )
    after = {
        name: f" → {pruned[name]:.2f} ({pruned[name] / report[name]:.0%})"
        for name in ("gflops", "mparams")
        if pruned is not None
    }
    console.print(
        f"{report['gflops']:.2f}{after.get('gflops', '')} GFLOPs, "
        f"{report['mparams']:.2f}{after.get('mparams', '')} M parameters"
    )
    prunable = [group for group in report["groups"] if group["prunable"]]
    frozen = [group for group in report["groups"] if not group["prunable"]]
    if prunable:
        show_table(console, _table(prunable, with_kept=pruned is not None))
        console.print(
            "GFLOPs, params: what goes with the whole group; a layer between two groups counts for both, so "
            "columns can add up to more than 100%"
        )
        if any(group["can_empty"] for group in prunable):
            console.print(
                "emptied: GFLOPs saved where a group keeps no channels, as a whole block may go; "
                "--json has the reasons of those that can't"
            )
    channels, kept = (sum(group[key] for group in prunable) for key in ("width", "kept"))
    after_all = f" → {kept}" if pruned else ""
    console.print(f"{count_of(len(prunable), 'channel group')} can be pruned: {channels}{after_all} channels")
    if frozen:
        console.print(f"{len(frozen)} {'is' if len(frozen) == 1 else 'are'} frozen:")
    for group in frozen:
        console.print(f"  {group['name']} ({group['width']}): {group['reason']}")
    if report["ready_space"] is not None and pruned is None:  # a policy is what a search ends with
        tell(console, f"a search space for it is ready, for --space: {report['ready_space']}")


def _table(groups: list[dict[str, Any]], with_kept: bool) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("channel group", overflow="fold")
    headings = ["width", *(["kept"] if with_kept else []), "unit", "GFLOPs", "params", "emptied"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups:
        cells = [
            group["width"],
            *([group["kept"]] if with_kept else []),
            group["unit"],
        ]
        fractions = [f"{group[key]:.1%}" for key in ("gflops_share", "mparams_share")]
        emptied = group["emptied_gflops_share"]
        fractions.append("-" if emptied is None else f"{emptied:.1%}")
        table.add_row(group["name"], *map(str, cells), *fractions)
    return table
