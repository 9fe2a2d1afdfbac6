"""`MODEL_CARD.md`: what a recovered detector is, its accuracy and cost, and how to load it, on one page."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.cost.budget import figures
from autoprune.export.formats import RAW_HEADS_ONNX, RAW_HEADS_PT2, VENDOR_PT, WHOLE_ONNX
from autoprune.files import write_text
from autoprune.policy import Policy
from autoprune.progress import count_of
from autoprune.run.documents import LATENCIES, METRICS, Document
from autoprune.run.names import CARD_FILE, LATENCY_FILE, METRICS_FILE, POLICY_FILE, WEIGHTS_FILE
from autoprune.study.trials import SAMPLED, origin_label

SCORES = {
    "map": "mAP (IoU 0.50:0.95)",
    "map50": "mAP at IoU 0.50",
    "map75": "mAP at IoU 0.75",
    "map_small": "mAP, small",
    "map_medium": "mAP, medium",
    "map_large": "mAP, large",
    "mar_100": "mean recall, 100 detections",
}
OTHER_FILES = {
    WHOLE_ONNX: "ONNX, all of it: `image` [3, height, width] in [0, 1] → `boxes`, `scores`, `labels`",
    RAW_HEADS_ONNX: "ONNX, fixed input, dense outputs; `autoprune/runtimes/decode_raw_heads.py` decodes them",
    VENDOR_PT: "for `YOLO(…)` of Ultralytics, a pickle: load it only where you trust its source",
    RAW_HEADS_PT2: "torch.export, the same network as `raw_heads.onnx`: `torch.export.load(…).module()`",
}
SHORT = 60
"""Characters of an argument that is shown as it is."""
ARCHITECTURE = ("yaml_file", "model_type")
"""What names the architecture in an argument that holds all of it: of Ultralytics, of Transformers."""


def write_card(folder: Path, policy: Policy | None = None) -> None:
    """Writes `MODEL_CARD.md` from the other files in the folder, so it can be written again at any time.

    Args:
        folder: holds `policy.yaml`, and may hold `metrics.json`, `latency.json` and exported files.
        policy: the folder's, if it was read already and its costs are checked (`Policy.with_costs`).

    Raises:
        PolicyError: the policy can't be read.
        RunError: the folder can't be written to.
    """
    write_text(folder / CARD_FILE, render(folder, policy))


def add_latencies(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds measured latencies to `latency.json`; a row replaces one with the same label.

    Args:
        folder: of the detector.
        rows: of each what `latency.networks.latency_row` returns.
    """
    by_label = {row["label"]: row for row in _read(folder / LATENCY_FILE, LATENCIES) or []}
    by_label |= {row["label"]: dict(row) for row in rows}
    write_text(folder / LATENCY_FILE, json.dumps(list(by_label.values()), indent=2) + "\n")


def render(folder: Path, policy: Policy | None = None) -> str:
    """The card's Markdown; see `write_card`."""
    policy = policy or Policy.load(folder / POLICY_FILE)
    metrics: Mapping[str, Any] = _read(folder / METRICS_FILE, METRICS) or {}
    parts = [
        _head(policy, metrics),
        _accuracy(metrics),
        _cost(policy, metrics),
        _latency(_read(folder / LATENCY_FILE, LATENCIES) or []),
        _loading(folder, policy),
        _origin(folder, policy, metrics),
    ]
    return "\n".join(part for part in parts if part)


def _head(policy: Policy, metrics: Mapping[str, Any]) -> str:
    dense = (metrics.get("dense") or {}).get("gflops")
    pruned = policy.metrics.get("gflops")
    fraction = f", {pruned / dense:.0%} of the dense detector's GFLOPs" if dense and pruned else ""
    return (
        f"# {policy.model.name}, pruned\n\n"
        f"An object detector of {policy.model.num_classes - 1} classes with torchvision's interface: "
        f"`{policy.model.name}`{_arguments(policy.model.arguments)}, pruned by autoprune{fraction}. Whole "
        f"channels were removed, so it is a plain, smaller network that needs no sparse kernels."
        f"{_input_size(policy)}\n"
    )


def _arguments(arguments: Mapping[str, Any]) -> str:
    """What the detector is built with; of a long argument its name, and the architecture's if it is one."""
    short = {name: value for name, value in arguments.items() if len(json.dumps(value)) <= SHORT}
    parts = [json.dumps(short, ensure_ascii=False)] if short else []
    for name in (name for name in arguments if name not in short):
        held = arguments[name] if isinstance(arguments[name], Mapping) else {}
        known = next((held[key] for key in ARCHITECTURE if isinstance(held.get(key), str)), None)
        parts.append(f"the `{name}` of `{POLICY_FILE}`" + (f" ({_text(known)})" if known else ""))
    return f" with {' and '.join(parts)}" if parts else ""


def _input_size(policy: Policy) -> str:
    """What the detector does with images, where the policy decides that."""
    rule = policy.resize
    if rule is None:
        return ""
    if rule.fixed is not None:
        return f" It stretches images to {rule.fixed[0]}x{rule.fixed[1]} pixels."
    return f" It resizes images to {rule.min_size} pixels on the shorter side, {rule.max_size} at most."


def _accuracy(metrics: Mapping[str, Any]) -> str:
    scores = metrics.get("metrics")
    if not scores:
        return "## Accuracy\n\nNot measured: `autoprune eval` does.\n"
    dense = metrics.get("dense") or {}
    before = dense.get("metrics", {})
    where = f"{count_of(metrics['images'], 'image')} of val" + (
        f" of {_text(metrics['data'])}" if metrics.get("data") else ""
    )
    rows = [(SCORES[name], scores.get(name), before.get(name)) for name in SCORES if name in scores]
    classes = [
        (f"mAP of {_text(name)}", value, dense.get("per_class", {}).get(name))
        for name, value in metrics.get("per_class", {}).items()
    ]
    lines = [
        f"| {name} | {_points(old)} | {_points(new)} | {_change(new, old)} |"
        for name, new, old in rows + classes
    ]
    return (
        f"## Accuracy\n\nCOCOeval in points, {where}.\n\n"
        "| | dense | this detector | change |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def _cost(policy: Policy, metrics: Mapping[str, Any]) -> str:
    dense = metrics.get("dense") or {}
    height, width = policy.input_size
    own = "x".join(map(str, dense.get("input_size", ())))
    elsewhere = f" (the dense detector at {own})" if policy.resize is not None and own else ""
    lines = []
    for key, name in (("gflops", "GFLOPs (multiply-adds, one image)"), ("mparams", "M parameters")):
        if key in policy.metrics:
            new, old = policy.metrics[key], dense.get(key)
            fraction = f" ({new / old:.0%})" if old else ""
            lines.append(f"| {name} | {figures(old) if old else '-'} | {figures(new)}{fraction} |")
    if not lines:
        return ""
    return (
        f"## Cost at {height}x{width}{elsewhere}\n\n| | dense | this detector |\n|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def _latency(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "## Latency\n\nNot measured: `autoprune latency FOLDER --record` does, and adds it here.\n"
    lines = []
    for row in rows:
        dense = row.get("dense_ms")
        fraction = f" ({row['median_ms'] / dense:.0%})" if dense else ""
        spread = f"{row['p10_ms']:.1f} to {row['p90_ms']:.1f}"
        before = f"{dense:.1f}" if dense else "-"
        if other := row.get("dense_network_size"):
            before += " at {}x{}".format(*other)
        lines.append(f"| {_text(row['label'])} | {before} | {row['median_ms']:.1f}{fraction} | {spread} |")
    return (
        "## Latency\n\nOf the network in ms, the median; dense and pruned interleaved.\n\n"
        "| setup | dense | this detector | 10th to 90th percentile |\n|---|---|---|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def _loading(folder: Path, policy: Policy) -> str:
    text = (
        "## Loading\n\n"
        "```python\n"
        "import autoprune, torch\n\n"
        f"model = autoprune.load({json.dumps(folder.name, ensure_ascii=False)})"
        f"  # {POLICY_FILE} and {WEIGHTS_FILE}\n"
        "with torch.inference_mode():\n"
        "    (detections,) = model([image])  # float32 [3, height, width] in [0, 1]; boxes, scores, labels\n"
        "```\n"
    )
    if policy.labels:
        names = ", ".join(f"{label} {_text(name)}" for label, name in sorted(policy.labels.items()))
        text += f"\nThe labels of its detections: {names}.\n"
    files = [f"- `{name}`: {content}" for name, content in OTHER_FILES.items() if (folder / name).is_file()]
    return text + ("\n" + "\n".join(files) + "\n" if files else "")


def _origin(folder: Path, policy: Policy, metrics: Mapping[str, Any]) -> str:
    digest = hashlib.sha256((folder / POLICY_FILE).read_bytes()).hexdigest()
    removed = sum(policy.widths[name] - len(kept) for name, kept in policy.keep.items())
    groups = count_of(len(policy.keep), "group")
    lines = [
        f"- policy: {removed} channels of {groups} removed, ranked by `{policy.criterion}`; "
        f"`sha256sum {POLICY_FILE}`: `{digest}`",
        f"- dense weights: `autoprune.policy.hash_weights` of them: `{policy.weights_sha256}`",
    ]
    if emptied := [f"`{name}`" for name, kept in policy.keep.items() if not kept]:
        lines.insert(
            1, f"- groups that keep no channels, so that their blocks are gone: {', '.join(emptied)}"
        )
    settings = metrics.get("settings", {})
    if "steps" in settings:
        rate = metrics.get("learning_rate", settings["learning_rate"])
        lines.append(
            f"- recovery: {settings['steps']} steps of {settings['batch_size']} images, learning rate "
            f"{rate:g}, feature distillation {settings['distill']:g}, "
            f"seed {settings['seed']}"
        )
    if metrics.get("kept") == "untrained":
        lines.append(
            "- the weights before the training were kept, since they scored higher on these images: mAP "
            f"{_points(metrics['untrained_map'])}"
        )
    if "trial" in metrics:
        origin = origin_label(metrics.get("origin", SAMPLED))
        lines.append(f"- trial {metrics['trial']} of its search ({origin})")
    if "versions" in metrics:
        lines.append(f"- made with {metrics['versions']}")
    return "## Origin\n\n" + "\n".join(lines) + "\n"


def _text(name: Any) -> str:
    """A name of the user's as text of a Markdown table: in one line, and without markup."""
    return re.sub(r"([\\`*\[<|&])", r"\\\1", " ".join(str(name).split()))


def _points(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _change(new: float | None, old: float | None) -> str:
    return "-" if new is None or old is None else f"{100 * (new - old):+.1f}"


def _read(file: Path, document: Document[Any]) -> Any:
    return document.read(file) if file.is_file() else None
