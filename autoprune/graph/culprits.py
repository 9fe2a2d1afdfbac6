"""Finds the groups behind a failure of the model's code, in as few runs as possible."""

import traceback
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from autoprune.graph.groups import ChannelGroup

_TOGETHER = "can't shrink together with other groups in the model's code"


def find_culprits(
    problem_of: Callable[[Sequence[ChannelGroup]], str | None],
    groups: Sequence[ChannelGroup],
    likely: Callable[[Sequence[ChannelGroup]], Sequence[ChannelGroup]] = lambda _: (),
) -> list[tuple[ChannelGroup, str]]:
    """Bisects ``groups`` to those that cause a problem, each with its own one.

    Args:
        problem_of: tries groups.
        groups: to search among.
        likely: those that the problem just found points to, which are tried first.
    """
    problem = problem_of(groups)
    if problem is None:
        return []
    if len(groups) == 1:
        return [(groups[0], problem)]
    first = likely(groups)
    if 0 < len(first) < len(groups) and (named := find_culprits(problem_of, first, likely)):
        settled = {id(group) for group, _ in named}
        rest = [group for group in groups if id(group) not in settled]
        return [*named, *(find_culprits(problem_of, rest, likely) if rest else [])]
    half = len(groups) // 2
    named = [
        *find_culprits(problem_of, groups[:half], likely),
        *find_culprits(problem_of, groups[half:], likely),
    ]
    return named or [(group, _TOGETHER) for group in groups]


def failed_in(model: nn.Module, error: Exception) -> list[str]:
    """The names of the modules whose code raised the error, the innermost first."""
    names = {id(module): name for name, module in model.named_modules()}
    owners = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return list(dict.fromkeys(names[owner] for owner in reversed(owners) if names.get(owner)))


def inside(groups: Sequence[ChannelGroup], modules: Iterable[str]) -> list[ChannelGroup]:
    """The groups that have channels in the first of these modules that has any."""
    for name in modules:
        near = [group for group in groups if any(m.tensor.startswith(f"{name}.") for m in group.members)]
        if near:
            return near
    return []
