"""A policy: which channels of each group are kept, at which input size. It alone determines an architecture.

A policy file holds everything but weights: `policy.yaml` and the dense weights give the pruned detector,
`policy.yaml` and `model.safetensors` the recovered one.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field, ValidationError
from torch import nn

from autoprune.config import ModelSpec
from autoprune.errors import ModelError, PolicyError
from autoprune.fields import Pixels
from autoprune.files import read_yaml, write_yaml
from autoprune.graph import ChannelGraph, analyze, prune
from autoprune.graph.groups import check_emptied
from autoprune.ranges import from_ranges, to_ranges
from autoprune.resize import Resize, checked, resized
from autoprune.trust import note_file
from autoprune.validation import Strict, as_path, check_kind, first_problem

FORMAT = 1
COST_TOLERANCE = 1e-6  # relative: costs are exact, but for their last digits in the file


class _GroupEntry(Strict):
    width: int = Field(ge=1)
    keep: str


class PolicyFile(Strict):
    """The layout of `policy.yaml`."""

    format: int
    model: ModelSpec
    weights_sha256: str
    criterion: str
    input_size: tuple[Pixels, Pixels]
    resize: Annotated[Resize, AfterValidator(checked)] | None = None
    groups: dict[str, _GroupEntry]
    labels: dict[int, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """The kept channels of each group, the input size, and what they were chosen for.

    Attributes:
        model: the dense architecture.
        weights_sha256: `hash_weights` of the dense weights.
        criterion: the importance criterion that scored the channels.
        input_size: (height, width) in pixels that the metrics were measured at.
        widths: dense width of each pruned group.
        keep: kept channels of each pruned group, rising; none where the group is emptied. Groups not named
            keep all channels.
        metrics: measured figures, with units in their names (`map`, `gflops`, `mparams`, `latency_ms`).
        resize: how the pruned detector resizes images; ``None`` leaves that as it is in the dense one.
        labels: name of the category that each label stands for; empty in policies of version 0.1.0.
    """

    model: ModelSpec
    weights_sha256: str
    criterion: str
    input_size: tuple[int, int]
    widths: Mapping[str, int]
    keep: Mapping[str, tuple[int, ...]]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    resize: Resize | None = None
    labels: Mapping[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """In a line, without the channels."""
        kept, dense = sum(map(len, self.keep.values())), sum(self.widths.values())
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        channels = f"{kept} of {dense} channels in {len(self.keep)} groups"
        size = "" if self.resize is None else f" at {self.resize.pixels} pixels"
        return f"<Policy of {self.model.name}{size}: {channels}; {figures}>"

    @property
    def kept_widths(self) -> dict[str, int]:
        """Channels that each group of `keep` has after pruning, as `ChannelGraph.gflops` takes them."""
        return {name: len(kept) for name, kept in self.keep.items()}

    @staticmethod
    def load(path: str | Path) -> "Policy":
        """Reads a policy file.

        Raises:
            ConfigError: the file is missing or not YAML.
            PolicyError: it is not a policy, or of a newer format.
        """
        content = read_yaml(as_path("path", path, "the path of a policy.yaml", PolicyError))
        if not isinstance(content, dict) or "groups" not in content:
            raise PolicyError(
                f"{path} is not a policy file (no `groups`); give a policy.yaml that autoprune wrote"
            )
        if (problem := _format_problem(content)) is not None:
            raise PolicyError(f"{path}: {problem}")
        file, keep = _checked(content, str(path))
        note_file(file.model.name, Path(path))
        return Policy(
            model=file.model,
            weights_sha256=file.weights_sha256,
            criterion=file.criterion,
            input_size=file.input_size,
            widths={name: entry.width for name, entry in file.groups.items()},
            keep=keep,
            metrics=file.metrics,
            resize=file.resize,
            labels=file.labels,
        )

    def save(self, path: str | Path) -> None:
        """Writes the policy as YAML, atomically; numbers of numpy and tensors become plain ones.

        Raises:
            PolicyError: `load` would refuse the file.
            RunError: the disk is full, or the folder is not writable.
        """
        file = as_path("path", path, "the path of the file to write", PolicyError)
        content = {
            "format": FORMAT,
            "model": _plain(self.model.model_dump()),
            "weights_sha256": self.weights_sha256,
            "criterion": self.criterion,
            "input_size": _plain(self.input_size),
            **({} if self.resize is None else {"resize": _plain(self.resize.to_dict())}),
            **({"labels": _plain(self.labels)} if self.labels else {}),
            "metrics": _plain(self.metrics),
            "groups": {
                name: {"width": _plain(self.widths.get(name)), "keep": to_ranges(_plain(kept))}
                for name, kept in self.keep.items()
            },
        }
        _checked(content, "the policy")
        header = "# autoprune policy: the channels that each group keeps. Groups not named keep all.\n"
        write_yaml(file, content, header)

    def check(self, graph: ChannelGraph) -> None:
        """Checks that the policy fits ``graph``.

        Raises:
            PolicyError: a group is unknown or has another width, or can't be emptied; or the policy prunes
                nothing.
        """
        for name, width in self.widths.items():
            if name not in graph.groups:
                raise PolicyError(
                    f"the policy is for another model: no group `{name}` here; see `autoprune inspect`"
                )
            if graph.groups[name].width != width:
                actual = graph.groups[name].width
                raise PolicyError(
                    f"the policy is for another model: group `{name}` has {actual} channels, not {width}"
                )
        if self.resize is None and all(len(kept) == self.widths[name] for name, kept in self.keep.items()):
            raise PolicyError("the policy prunes nothing: every group keeps all its channels")
        check_emptied(graph, [name for name, kept in self.keep.items() if not kept])

    def with_costs(self, graph: ChannelGraph, where: str | Path = "the policy") -> "Policy":
        """The same policy with the GFLOPs and parameters of its channels, after `check`.

        Where its metrics say others, they are of other channels: a warning names both, and only these
        costs stay.

        Args:
            graph: of the dense architecture, traced at ``input_size`` after `resized`.
            where: the policy's file, for the warning.

        Raises:
            PolicyError: the policy is for another model, or a cost in its metrics is no number.
        """
        self.check(graph)
        costs = {"gflops": graph.gflops(self.kept_widths), "mparams": graph.mparams(self.kept_widths)}
        for name, value in costs.items():
            stored = self.metrics.get(name, value)
            check_kind(f"metrics.{name} of {where}", stored, Real, "a number", PolicyError)
            if not math.isclose(stored, value, rel_tol=COST_TOLERANCE):
                warnings.warn(
                    f"{where} says {name} {stored:g}, and its channels have {value:g}: it was changed, so "
                    "its metrics are ignored",
                    stacklevel=2,
                )
                return replace(self, metrics=costs)
        return replace(self, metrics={**self.metrics, **costs})

    def resized(self, dense_model: nn.Module) -> nn.Module:
        """The dense detector at the input size of the policy; weights are shared with it.

        Raises:
            ModelError: the detector can't run at another input size.
        """
        return resized(dense_model, self.resize)

    def apply(self, dense_model: nn.Module, graph: ChannelGraph | None = None) -> nn.Module:
        """Returns a pruned copy of ``dense_model``, at the policy's input size; the model is not changed.

        Other weights than those that the policy was made for are allowed, with a warning.

        Args:
            dense_model: a detector of the policy's dense architecture.
            graph: its channel groups, at whatever input size, if they are known already.

        Raises:
            PolicyError: the policy is for another model.
            ModelError: it is no model, none that takes a list of images, or one that can't run at the
                policy's input size.
        """
        check_kind("dense_model", dense_model, nn.Module, "a torch.nn.Module", ModelError)
        dense_model = self.resized(dense_model)
        if graph is None:
            device = next((weight.device for weight in dense_model.parameters()), torch.device("cpu"))
            graph = analyze(dense_model, ([torch.rand(3, *self.input_size, device=device)],))
        self.check(graph)
        if hash_weights(dense_model.state_dict()) != self.weights_sha256:
            warnings.warn("the policy was made for other dense weights of this architecture", stacklevel=2)
        return prune(dense_model, graph, keep=self.keep)


def hash_weights(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, shapes and float32 values of a state dict.

    Batch counters are excluded: they affect no output, and frozen norms have none, so that the same weights
    have one hash with either kind of norm.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith("num_batches_tracked")):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _format_problem(content: Mapping[str, Any]) -> str | None:
    """Why a file of this ``format`` can't be read; ``None`` where it can."""
    if "format" not in content:
        return f"`format` is missing; restore the file, which autoprune wrote with `format: {FORMAT}`"
    number = content["format"]
    if not isinstance(number, int) or isinstance(number, bool) or number < FORMAT:
        return f"`format` must be the number {FORMAT}, not {number!r}; restore what autoprune wrote"
    if number > FORMAT:
        return f"it has format {number}, and this autoprune reads {FORMAT}; update autoprune"
    return None


def _checked(content: Mapping[str, Any], where: str) -> tuple[PolicyFile, dict[str, tuple[int, ...]]]:
    """What a policy file holds, and the kept channels of each group.

    Raises:
        PolicyError: names the field.
    """
    try:
        file = PolicyFile.model_validate(content)
    except ValidationError as error:
        problem = first_problem(error, PolicyFile, where)
        raise PolicyError(f"{problem}; restore what autoprune wrote") from error
    classes = file.model.num_classes
    if lacking := [label for label in file.labels if not 0 <= label < classes]:
        raise PolicyError(
            f"{where}: `labels` names {lacking[0]} {file.labels[lacking[0]]!r}, and {file.model.name} has "
            f"labels up to {classes - 1}; restore what autoprune wrote, or the labels of this detector"
        )
    return file, {
        name: _read_ranges(f"{where}: group `{name}`", entry) for name, entry in file.groups.items()
    }


def _plain(value: Any) -> Any:
    """The same value in the types that YAML has: numbers of numpy and tensors become Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _read_ranges(where: str, entry: _GroupEntry) -> tuple[int, ...]:
    try:
        kept = from_ranges(entry.keep)
    except ValueError as error:
        raise PolicyError(
            f"{where}: keep must be rising ranges such as 0-5,8, or none, not {entry.keep!r}"
        ) from error
    if kept and kept[-1] >= entry.width:
        raise PolicyError(f"{where}: channel {kept[-1]} does not exist, it has {entry.width}")
    return kept
