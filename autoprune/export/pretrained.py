"""A pruned detector of Transformers as a folder in its own form, beside the policy that says its shapes.

The vendor's config can't say that layers differ in width, so its `from_pretrained` builds the dense shapes
and fails, as the tensors have others; `autoprune.load(folder).unwrap()` gives the vendor's module as it was
pruned.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.detectors import resize_rule, save_state
from autoprune.detectors.class_names import header_of
from autoprune.errors import ConfigError
from autoprune.export.formats import instead_of
from autoprune.files import write_text
from autoprune.policy import Policy
from autoprune.run.names import POLICY_FILE, WEIGHTS_FILE
from autoprune.vendors import VendorDetector

LIBRARY = "transformers"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"


def write_pretrained(folder: Path, model: nn.Module, policy: Policy) -> tuple[Path, ...]:
    """Writes the policy, weights by the vendor's own names, and the two files that its functions read.

    Args:
        folder: exists; files of these names in it are replaced.
        model: the pruned detector.
        policy: what it was pruned by.

    Returns:
        The files besides weights and policy.

    Raises:
        ConfigError: the detector is not one of Transformers.
        RunError: the disk is full, or the folder can't be written to.
    """
    if not isinstance(model, VendorDetector) or model.library != LIBRARY:
        raise ConfigError(f"--format {LIBRARY} is for detectors of {LIBRARY}, and {instead_of(model)}")
    metadata = {"format": "pt", **(header_of(policy.labels) or {})}
    save_state(model.unwrap(), folder / WEIGHTS_FILE, metadata=metadata)
    policy.save(folder / POLICY_FILE)
    config, preprocessing = (dict(policy.model.arguments[name]) for name in ("config", "preprocessing"))
    names = policy.labels
    config["id2label"] = {n: names.get(n + 1, f"LABEL_{n}") for n in range(policy.model.num_classes - 1)}
    config["label2id"] = {name: n for n, name in config["id2label"].items()}
    config["architectures"] = [type(model.unwrap()).__name__]
    config["pruned_by"] = (
        f"autoprune: {POLICY_FILE} holds the widths; autoprune.load(folder).unwrap() loads it"
    )
    if preprocessing["do_resize"]:
        preprocessing["size"] = _size(model)
    for file, content in ((CONFIG_FILE, config), (PREPROCESSOR_FILE, preprocessing)):
        write_text(folder / file, json.dumps(content, indent=2) + "\n")
    return folder / CONFIG_FILE, folder / PREPROCESSOR_FILE


def _size(model: nn.Module) -> dict[str, Any]:
    """The input size of a detector, as the vendor's processors take it."""
    rule = resize_rule(model)
    assert rule is not None
    if rule.fixed is not None:
        return {"height": rule.fixed[0], "width": rule.fixed[1]}
    return {"shortest_edge": rule.min_size, "longest_edge": rule.max_size}
