"""What is pruned: the dense detector with its data, channel groups and costs; loaded once per process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from autoprune.config import Config, ModelSpec
from autoprune.data.coco import Split, check_same_classes, open_data
from autoprune.data.label_check import check_labels
from autoprune.detectors import Resize, detector_inputs, pixel_resizing, resize_rule, resized
from autoprune.detectors.inputs import size_text
from autoprune.detectors.parts import Parts, find_parts
from autoprune.errors import ConfigError
from autoprune.graph import ChannelGraph, analyze
from autoprune.latency.machine import LatencySetup
from autoprune.policy import Policy, hash_weights
from autoprune.progress import say
from autoprune.task.checks import (
    check_reconstruction,
    pick_device,
    refuse_missing,
    warn_enlarged,
)
from autoprune.task.input_sizes import SmallerSize, smaller_rules, trace_sizes
from autoprune.task.labels import load_labeled


@dataclass(frozen=True)
class PruningTask:
    """A dense detector and all that is needed to prune and train it.

    Attributes:
        config: the settings it was loaded with.
        model: the dense detector, in eval mode on ``device``; never modified.
        spec: its architecture.
        graph: its channel groups.
        train: training split.
        val: validation split.
        input_size: height and width in pixels that costs are counted at.
        device: where to compute.
        weights_sha256: hash of the dense weights.
        resize: how the detector resizes, where that is not its own input size.
        smaller: the same task at each smaller input size of the search, by the pixels of the shorter side.
    """

    config: Config
    model: nn.Module
    spec: ModelSpec
    graph: ChannelGraph
    train: Split
    val: Split
    input_size: tuple[int, int]
    device: torch.device
    weights_sha256: str
    resize: Resize | None = None
    smaller: Mapping[int, "PruningTask"] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def parts(self) -> Parts | None:
        """Where the detector makes its feature maps and predictions, where that is known."""
        return find_parts(self.model, self.graph)

    def at(self, pixels: int | None) -> "PruningTask":
        """The task at one of the search's input sizes, given by the pixels of the shorter side.

        Detector, splits, costs and latency are those of that size; ``None`` is the detector's own.

        Raises:
            ConfigError: the settings have no such size.
        """
        if pixels is None or pixels == self.pixels:
            return self
        if pixels not in self.smaller:
            known = ", ".join(map(str, (self.pixels, *self.smaller)))
            raise ConfigError(
                f"input_sizes: a trial has {pixels} pixels, and the settings give {known}; restore what the "
                "search was started with"
            )
        return replace(self.smaller[pixels], config=self.config)

    @property
    def pixels(self) -> int | None:
        """The shorter side that the detector resizes to; ``None`` where it has no rule."""
        return None if (rule := resize_rule(self.model)) is None else rule.pixels

    @property
    def latency_setup(self) -> LatencySetup:
        """How the run measures latency: one image at the input size, in the configured runtime."""
        return LatencySetup(self.config.latency_runtime, self.device, self.trial_threads, self.input_size)

    @property
    def trial_threads(self) -> int | None:
        """CPU threads of a trial, on Ray those of its workers; ``None`` for torch's own number."""
        config = self.config
        if config.engine == "ray" and config.threads is None:
            return max(1, int(config.cpus_per_trial))
        return config.threads

    @property
    def proxy_images(self) -> int:
        """How many validation images, the first ones, trials are measured on."""
        images = self.config.proxy_images
        return len(self.val) if images is None else min(images, len(self.val))

    @property
    def amp(self) -> bool:
        """Whether detectors are evaluated in bfloat16; `detection_precision` decides it."""
        return self.config.detection_precision == "bfloat16"

    @property
    def data_identity(self) -> dict[str, str]:
        """Hashes of what the splits hold, so that nothing is resumed on other data under the same path."""
        return {
            "training data": self.train.fingerprint[:16],
            "validation data": self.val.fingerprint[:16],
        }

    @property
    def data_counts(self) -> dict[str, dict[str, int]]:
        """Usable images and boxes of the splits, which say in words what a change of `data_identity` is."""
        splits = {"training data": self.train, "validation data": self.val}
        return {
            name: {"images": len(split), "boxes": len(split.coco.dataset["annotations"])}
            for name, split in splits.items()
        }

    @property
    def labels(self) -> dict[str, int] | None:
        """The label of each category, as in the settings; ``None`` where two categories have one name."""
        by_name = {name: label for label, name in self.train.categories.items()}
        return by_name if len(by_name) == len(self.train.categories) else None

    def check_labels(self, images: int | None = None, must_find: bool = False) -> None:
        """Compares the labels with what the dense detector finds in validation images.

        See `data.label_check.check_labels`.

        Args:
            images: take them from the first of this number; ``None``: from all.
            must_find: refuse a detector that finds nothing.

        Raises:
            ModelError: the detector finds nothing, and ``must_find``.
            ConfigError: another mapping is far better and the user did not give the labels.
        """
        check_labels(
            self.model,
            self.val,
            self.spec.num_classes,
            self.device,
            self.config.batch_size,
            images,
            given=self.config.labels is not None,
            must_find=must_find,
        )

    def policy(self, keep: Mapping[str, Sequence[int]], metrics: Mapping[str, Any]) -> Policy:
        """The policy that keeps these channels.

        Args:
            keep: {group: kept channels, rising}, for each pruned group.
            metrics: what was measured of the pruned detector.
        """
        return Policy(
            model=self.spec,
            weights_sha256=self.weights_sha256,
            criterion=self.config.criterion,
            input_size=self.input_size,
            widths={name: self.graph.groups[name].width for name in keep},
            keep={name: tuple(kept) for name, kept in keep.items()},
            metrics=metrics,
            resize=self.resize,
            labels=self.train.categories if self.config.labels is not None else {},
        )

    def costs(self, keep: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """``gflops`` and ``mparams`` (millions of parameters) of the detector that keeps these channels."""
        widths = {name: len(kept) for name, kept in keep.items()}
        return {"gflops": self.graph.gflops(widths), "mparams": self.graph.mparams(widths)}


def load_task(config: Config) -> PruningTask:
    """Loads detector and data, and finds the channel groups.

    Raises:
        ConfigError: the device is not available, no dense weights are given, there are too few images, or
            the detector can't run at one of the input sizes.
        DataError: the data is missing, or in no layout that is read.
        ModelError: the detector can't be built, or the weights are another architecture's.
    """
    device = pick_device(config)
    refuse_missing(config)
    train = _open(config, "train")
    model, spec, labels = load_labeled(config, train)
    rules = smaller_rules(model, config.input_sizes, spec.name)
    rule = resize_rule(model)
    images = pixel_resizing(model)
    train = train.relabeled(labels).resized(images)
    val = _open(config, "val", labels).resized(images)
    check_same_classes(train, val)
    check_reconstruction(config.reconstruct_images, len(train))
    input_size = config.input_size or val.most_common_size
    graph = analyze(model, detector_inputs(input_size))
    parts = find_parts(model, graph)
    if config.distill_logits and not (parts and parts.logits):
        say(f"distill_logits does nothing: of {config.model} no class logits are known")
    say(
        f"{spec.name} at {size_text(model, input_size)} (height x width): {graph.gflops():.2f} GFLOPs; "
        f"{len(train)} training and {len(val)} validation images"
    )
    sizes = trace_sizes(model, graph, input_size, rules, spec.name)
    warn_enlarged(train, rule, spec.arguments)
    weights_sha256 = hash_weights(model.state_dict())
    task = PruningTask(
        config, model.to(device).eval(), spec, graph, train, val, input_size, device, weights_sha256
    )
    return replace(task, smaller={size.pixels: _at_size(task, size) for size in sizes})


def _at_size(task: PruningTask, size: SmallerSize) -> PruningTask:
    """The task at a smaller input size."""
    model = resized(task.model, size.rule)
    images = pixel_resizing(model)
    return replace(
        task,
        model=model,
        graph=size.graph,
        train=task.train.resized(images),
        val=task.val.resized(images),
        input_size=size.input_size,
        resize=size.rule,
    )


def _open(config: Config, split: str, labels: Mapping[int, str] | None = None) -> Split:
    return open_data(
        config.data,
        split,
        None,
        config.image_cache_gib,
        config.strict,
        config.val_fraction,
        labels,
        config.evaluator,
        # on one node all workers decode for each other
        scope=f"{config.out} {config.model} {config.model_arguments}" if config.engine == "ray" else None,
    )
