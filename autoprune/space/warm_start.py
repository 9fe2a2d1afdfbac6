"""A policy to try before the sampler proposes any."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmStart:
    """A policy to try before the sampler proposes any.

    Attributes:
        origin: the one-shot method that found it, such as ``"uniform"``.
        budget: index of the budget that it was made for.
        fractions: value of each of the space's variables, 0 to 1.
        widths: its exact widths by group; ``None`` where `Plan.widths` computes them from ``fractions``.
    """

    origin: str
    budget: int
    fractions: tuple[float, ...]
    widths: Mapping[str, int] | None = None
