"""A pruned detector as a folder: `policy.yaml` and `model.safetensors`; loading it needs no data."""

import math
from os.path import isfile  # which takes a name that is too long for one of no file
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autoprune.checkpoints.differences import differences
from autoprune.checkpoints.parts import index_of, read_parts
from autoprune.checkpoints.read import read_checkpoint
from autoprune.checkpoints.state_dicts import plain_state
from autoprune.detectors import build, detector_inputs, save_state
from autoprune.detectors.class_names import header_of
from autoprune.detectors.variances import refuse_bad_variances
from autoprune.detectors.weights import refuse_not_finite, state_of
from autoprune.errors import ModelError, PolicyError
from autoprune.graph import analyze, prune
from autoprune.policy import Policy
from autoprune.run.names import POLICY_FILE, WEIGHTS_FILE
from autoprune.validation import as_path
from autoprune.vendors import VendorDetector


def save_detector(folder: str | Path, model: nn.Module, policy: Policy) -> None:
    """Writes a pruned detector; `load` reads it back.

    Args:
        folder: created if it does not exist; files of these names in it are replaced.
        model: the pruned detector.
        policy: what it was pruned by, with its metrics.

    Raises:
        RunError: the disk is full, or the folder can't be written to.
    """
    save_state(model, Path(folder) / WEIGHTS_FILE, metadata=header_of(policy.labels))
    policy.save(Path(folder) / POLICY_FILE)


def load(folder: str | Path) -> nn.Module:
    """Reads a pruned detector that `save_detector` or `autoprune recover` wrote.

    Returns:
        The detector in eval mode, on the CPU, float32.

    Raises:
        PolicyError, ModelError: see `load_with_policy`.
    """
    return load_with_policy(folder)[0]


def load_with_policy(folder: str | Path) -> tuple[nn.Module, Policy]:
    """Reads a pruned detector as `load` does, and its policy with the costs of its channels.

    Raises:
        PolicyError: the policy or the weights are missing, or the policy can't be read.
        ModelError: the weights are not those of the policy, or it names a factory without consent (`trust`).
    """
    folder = as_path("folder", folder, "the folder of a recovered or exported detector", PolicyError)
    policy_file, weights_file = folder / POLICY_FILE, folder / WEIGHTS_FILE
    index = index_of(weights_file)
    in_parts = not isfile(weights_file) and isfile(index)  # as a vendor's trainer may save it
    needed = (policy_file, index if in_parts else weights_file)
    if missing := [path.name for path in needed if not isfile(path)]:
        raise PolicyError(
            f"{folder} holds no {missing[0]}; give a folder that `autoprune recover` or `export` wrote"
        )
    policy = Policy.load(policy_file)
    content = read_parts(index) if in_parts else read_checkpoint(weights_file)
    state = plain_state(content, str(weights_file))
    dense = policy.resized(build(policy.model))
    graph = analyze(dense, detector_inputs(policy.input_size))
    policy = policy.with_costs(graph, policy_file)
    pruned = prune(dense, graph, policy.keep)
    if isinstance(pruned, VendorDetector):  # its own trainer saves it by other names, and shared tensors once
        state = state_of(pruned, pruned.own_names(content, str(weights_file)), str(weights_file))
    if wrong := differences(state, pruned.state_dict()):
        raise ModelError(
            f"{weights_file} does not fit {policy_file.name}: {wrong}; take both files from one folder"
        )
    refuse_not_finite(state, pruned.state_dict(), str(weights_file))
    refuse_bad_variances(pruned, state, str(weights_file))
    pruned.load_state_dict(state)
    if isinstance(pruned, VendorDetector) and policy.labels:
        pruned.name_classes(policy.labels)
    return pruned.eval(), policy


def largest_difference(first: nn.Module, second: nn.Module, input_size: tuple[int, int]) -> float:
    """The largest difference between the raw outputs of two detectors on one random image.

    It compares all tensors that the direct children (backbone, head, ...) return, and not the detections:
    detectors that find nothing in noise would all be equal.

    Args:
        first: a detector in eval mode, on the CPU.
        second: another of the same architecture.
        input_size: height and width of the image in pixels.

    Returns:
        0 where they are equal bit by bit, infinity where their shapes differ.
    """
    outputs, others = (_raw_outputs(model, input_size) for model in (first, second))
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in others]:
        return math.inf
    return max(
        (float((a - b).abs().max()) for a, b in zip(outputs, others, strict=True) if a.numel()), default=0.0
    )


def _raw_outputs(model: nn.Module, input_size: tuple[int, int]) -> list[Tensor]:
    outputs: list[Tensor] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.extend(
            leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()
        )

    handles = [child.register_forward_hook(record) for child in model.children()]
    try:
        with torch.inference_mode():
            model(*detector_inputs(input_size))
    finally:
        for handle in handles:
            handle.remove()
    return outputs
