"""A pruned detector as a folder: `policy.yaml` and `model.safetensors`; loading it needs no data."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from os.path import isfile  # which takes a name that is too long for one of no file
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autoprune.checkpoints.differences import differences
from autoprune.checkpoints.parts import index_of, read_parts
from autoprune.checkpoints.prefixes import State, is_counter
from autoprune.checkpoints.read import read_checkpoint
from autoprune.checkpoints.state_dicts import plain_state
from autoprune.data.labels import describe
from autoprune.detectors import build, detector_inputs, save_state
from autoprune.detectors.class_names import header_of, names_held, names_in, renamed
from autoprune.detectors.variances import refuse_bad_variances
from autoprune.detectors.weights import refuse_not_finite, state_of
from autoprune.errors import ModelError, PolicyError
from autoprune.fields import is_vendor
from autoprune.graph import ChannelGraph, analyze, prune
from autoprune.policy import Policy
from autoprune.progress import say
from autoprune.run.names import POLICY_FILE, WEIGHTS_FILE
from autoprune.validation import as_path
from autoprune.vendors import VendorDetector, vendor_of


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


def load(folder: str | Path, weights: str | Path | None = None) -> nn.Module:
    """Reads a pruned detector that `save_detector` or `autoprune recover` wrote.

    Args:
        folder: holds the policy, and the weights unless others are given.
        weights: a file, or a folder with one, of the same pruned detector, as it was trained on elsewhere.

    Returns:
        The detector in eval mode, on the CPU, float32.

    Raises:
        PolicyError, ModelError: see `load_with_policy`.
    """
    return load_with_policy(folder, weights)[0]


def load_with_policy(
    folder: str | Path, weights: str | Path | None = None, weights_key: str | None = None
) -> tuple[nn.Module, Policy]:
    """Reads a pruned detector as `load` does, and its policy with the costs of its channels.

    Args:
        folder: see `load`.
        weights: see `load`; with them the policy has no metrics but its costs, and the names of the classes
            that they carry.
        weights_key: of a file of ``weights`` with several sets of them, the one to take.

    Raises:
        PolicyError: the policy or the weights are missing, or the policy can't be read.
        ModelError: the weights are not those of the policy, or it names a factory without consent (`trust`).
    """
    folder = as_path("folder", folder, "the folder of a recovered or exported detector", PolicyError)
    policy_file, file = folder / POLICY_FILE, folder / WEIGHTS_FILE
    index = index_of(file)
    in_parts = not isfile(file) and isfile(index)  # as a vendor's trainer may save it
    own = () if weights is not None else (index if in_parts else file,)
    if missing := [path.name for path in (policy_file, *own) if not isfile(path)]:
        raise PolicyError(
            f"{folder} holds no {missing[0]}; give a folder that `autoprune recover` or `export` wrote"
        )
    policy = Policy.load(policy_file)
    if weights is None:
        content = read_parts(index) if in_parts else read_checkpoint(file)
        state = plain_state(content, str(file))
    else:
        file = as_path("weights", weights, "a file of weights", ModelError)
        content = _given(file, policy.model.name)
        policy = replace(policy, labels=_labels(policy, content, file))
    dense = policy.resized(build(policy.model))
    graph = graph_of(dense, policy)
    policy = policy.with_costs(graph, policy_file)
    pruned = prune(dense, graph, policy.keep)
    expected = pruned.state_dict()
    if isinstance(pruned, VendorDetector):  # its own trainer saves it by other names, and shared tensors once
        content = pruned.own_names(content, str(file))
    if weights is not None or isinstance(pruned, VendorDetector):
        state = state_of(pruned, content, str(file), weights_key)
    fix = "take both files from one folder"
    if weights is not None:
        costs = {name: value for name, value in policy.metrics.items() if name in ("gflops", "mparams")}
        policy, state = replace(policy, metrics=costs), _with_counters(state, expected)
        fix = f"give weights of this pruned detector; with dense ones, name the policy: {policy_file}"
    if wrong := differences(state, expected):
        raise ModelError(f"{file} does not fit {policy_file.name}: {wrong}; {fix}")
    refuse_not_finite(state, expected, str(file))
    refuse_bad_variances(pruned, state, str(file))
    pruned.load_state_dict(state)
    if isinstance(pruned, VendorDetector) and policy.labels:
        pruned.name_classes(policy.labels)
    return pruned.eval(), policy


_last_graph: dict[Hashable, ChannelGraph] = {}
"""That of the last architecture: what is written is read back, and all trials of a front have one."""


def graph_of(dense: nn.Module, policy: Policy) -> ChannelGraph:
    """The channel groups of a policy's dense detector, at the policy's input size.

    Args:
        dense: as `build` makes it from ``policy.model``, whatever its weights; on the CPU.
        policy: see above.

    Raises:
        ModelError: the detector can't run at the policy's input size, or can't be traced.
    """
    shapes = tuple((name, tensor.shape) for name, tensor in dense.state_dict().items())
    key = (policy.model.model_dump_json(), policy.resize, policy.input_size, shapes)
    if (graph := _last_graph.get(key)) is None:
        graph = analyze(policy.resized(dense), detector_inputs(policy.input_size))
        _last_graph.clear()
        _last_graph[key] = graph
    return graph


def _given(weights: Path, model: str) -> Any:
    """What a file that a user names holds, or the one in a folder, perhaps in parts.

    Args:
        weights: the file or the folder.
        model: the name of the detector; the files of its library are read as that library's.

    Raises:
        ModelError: there is none, or it can't be read safely.
    """
    if not weights.is_dir():
        return vendor_of(model)[0].read_weights(weights) if is_vendor(model) else read_checkpoint(weights)
    file = weights / WEIGHTS_FILE
    if not isfile(file) and isfile(index := index_of(file)):
        return read_parts(index)
    if not isfile(file):
        raise ModelError(f"{weights} holds no {WEIGHTS_FILE}; give the file that holds the weights")
    return read_checkpoint(file)


def _labels(policy: Policy, content: Any, file: Path) -> Mapping[int, str]:
    """The name of each label: those that weights from elsewhere carry, which is said, where they differ.

    Args:
        policy: of the detector.
        content: what the file of the weights holds.
        file: the file, or its folder.
    """
    name, classes = policy.model.name, policy.model.num_classes
    carried = names_held(content, classes) or names_in(str(file), name, classes)
    if not carried and file.is_dir():
        carried = names_in(str(file / WEIGHTS_FILE), name, classes)
    labels = renamed(policy.labels, carried)
    if labels != policy.labels and policy.labels:
        own, other = describe(labels), describe(policy.labels)
        say(f"labels: {own}, as {file} names them; the policy is of {other}")
    return labels


def _with_counters(state: State, expected: State) -> State:
    """The tensors of a file with the counters of the model, which no output depends on, where it has none."""
    counters = {name: value for name, value in expected.items() if is_counter(name)}
    others = {name: value for name, value in state.items() if name in expected or not is_counter(name)}
    return counters | others


def largest_difference(first: nn.Module, second: nn.Module, input_size: tuple[int, int]) -> float:
    """The largest difference between the raw outputs of two detectors on one random image.

    It compares all tensors that the direct children (backbone, head, ...) return, and not the detections:
    detectors that find nothing in noise would all be equal.

    Args:
        first: a detector in eval mode, on the CPU.
        second: another of the same architecture.
        input_size: height and width of the image in pixels.

    Returns:
        0 where they are equal, NaN and infinities included; infinity where their shapes differ, or one of
        them is not finite where the other is another number.
    """
    outputs, others = (_raw_outputs(model, input_size) for model in (first, second))
    if [tensor.shape for tensor in outputs] != [tensor.shape for tensor in others]:
        return math.inf
    return max(map(_distance, outputs, others), default=0.0)


def _distance(one: Tensor, other: Tensor) -> float:
    if torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        return 0.0
    largest = float((one - other).abs().max())
    return largest if math.isfinite(largest) else math.inf


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
