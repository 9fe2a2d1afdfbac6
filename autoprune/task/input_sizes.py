"""The smaller input sizes that a search may choose from: their resize rules, and the costs at each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import nn

from autoprune.detectors import Resize, detector_inputs, pixel_resizing, resize_rule, resized
from autoprune.detectors.inputs import size_text, smallest_anchor, stride
from autoprune.errors import ConfigError, ModelError
from autoprune.graph import ChannelGraph, analyze, count
from autoprune.images.decode import resized_size
from autoprune.progress import say

STRIDE = 32
"""Of detectors that do not say to which multiple they pad: that of nearly every backbone's last stage."""


@dataclass(frozen=True)
class SmallerSize:
    """A smaller input size of a detector.

    Attributes:
        pixels: of the shorter side.
        rule: how the detector resizes.
        input_size: height and width that costs are counted at.
        graph: the channel groups, with the costs at this size.
    """

    pixels: int
    rule: Resize
    input_size: tuple[int, int]
    graph: ChannelGraph


def smaller_rules(model: nn.Module, input_sizes: Sequence[float], name: str) -> list[Resize]:
    """The rules of the smaller sizes, the largest first.

    The shorter side is rounded to the stride, so that padding costs nothing; the longest side keeps its
    ratio to it.

    Args:
        model: the dense detector.
        input_sizes: fractions of its own input size; 1 is omitted.
        name: the detector's, for messages.

    Raises:
        ConfigError: the detector's size can't be set, or a size is below its stride or its smallest anchor,
            or equals another one.
    """
    fractions = [fraction for fraction in input_sizes if fraction < 1]
    own = resize_rule(model)
    if not fractions:
        return []
    if own is None or own.pixels is None:
        raise ConfigError(
            f"input_sizes: {name} has no input size that can be set: it needs a `transform` with `min_size` "
            "and `max_size`, or with `fixed_size`, as torchvision's detectors have; omit --input-sizes"
        )
    step = stride(model) or STRIDE
    anchor = smallest_anchor(model)
    rules: dict[int, float] = {own.pixels: 1.0}
    result = []
    for fraction in fractions:
        rule = _scaled(own, fraction, step)
        pixels = rule.pixels or 0
        problem = None
        if pixels < step:
            problem = f"below the stride, {step}"
        elif pixels < anchor:
            problem = f"below the smallest anchor, {anchor:g}"
        elif pixels in rules:
            problem = f"{pixels} pixels, as {rules[pixels]:g} is (sizes are multiples of {step})"
        if problem is not None:
            raise ConfigError(
                f"input_sizes: {fraction:g} of the {own.pixels} pixels of {name} is {problem}; give another "
                "fraction, or omit it"
            )
        rules[pixels] = fraction
        result.append(rule)
    try:
        resized(model, result[0])
    except ModelError as error:
        raise ConfigError(f"input_sizes: {error}; omit --input-sizes") from error
    return result


def trace_sizes(
    model: nn.Module, graph: ChannelGraph, input_size: tuple[int, int], rules: Sequence[Resize], name: str
) -> list[SmallerSize]:
    """Traces a detector at each smaller size: the groups are the same, the costs are not.

    Args:
        model: the dense detector, in eval mode on the CPU.
        graph: its channel groups at its own size.
        input_size: height and width that ``graph`` counts costs at.
        rules: of the smaller sizes, the largest first.
        name: the detector's, for messages.

    Raises:
        ConfigError: the detector fails at a size, does not become cheaper, or has other groups there.
    """
    sizes: list[SmallerSize] = []
    for rule in rules:
        at = f"input_sizes: {name} at {rule.pixels} pixels"
        try:
            smaller = resized(model, rule)
            size = resized_size(input_size, pixel_resizing(smaller))
            traced = analyze(smaller, detector_inputs(size))
            unscaled = count(smaller, detector_inputs(input_size))
        except ModelError as error:
            raise ConfigError(f"{at}: {error}; omit this size") from error
        if not _same_groups(traced, graph):
            raise ConfigError(f"{at} has other channel groups than at its own size; omit this size")
        larger = sizes[-1].graph if sizes else graph
        if max(traced.gflops(), unscaled.gflops) >= larger.gflops():  # it has to resize by itself
            raise ConfigError(
                f"{at} has no fewer GFLOPs than above: its `transform` is not what sets its input size; omit "
                "this size"
            )
        assert rule.pixels is not None
        say(f"at {rule.pixels} pixels ({size_text(smaller, size)}): {traced.gflops():.2f} GFLOPs")
        sizes.append(SmallerSize(rule.pixels, rule, size, traced))
    return sizes


def _scaled(own: Resize, fraction: float, step: int) -> Resize:
    def rounded(side: int) -> int:
        return math.floor(fraction * side / step + 0.5) * step

    if own.fixed is not None:
        return Resize(fixed=(rounded(own.fixed[0]), rounded(own.fixed[1])))
    assert own.min_size is not None
    assert own.max_size is not None
    shorter = rounded(own.min_size)
    # rounded up: a longest side that is cut would shorten the shorter one too
    return Resize(shorter, math.ceil(Fraction(own.max_size * shorter, own.min_size)))


def _same_groups(one: ChannelGraph, other: ChannelGraph) -> bool:
    """Whether two traces of a detector found the same groups with the same channels."""
    if list(one.groups) != list(other.groups) or one.cost.names != other.cost.names:
        return False
    return all(
        (a.width, a.unit, a.prunable) == (b.width, b.unit, b.prunable)
        and np.array_equal(a.units, b.units)
        and len(a.members) == len(b.members)
        and all(
            (p.tensor, p.axis) == (q.tensor, q.axis) and np.array_equal(p.channels, q.channels)
            for p, q in zip(a.members, b.members, strict=True)
        )
        for a, b in zip(one.groups.values(), other.groups.values(), strict=True)
    )
