"""Applies a search space file to a channel graph: which entry counts for a group, what shares one ratio."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.errors import ConfigError, PolicyError
from autoprune.graph import ChannelGraph, ChannelGroup
from autoprune.graph.groups import check_emptied
from autoprune.space.closure import Closure
from autoprune.space.file import Granularity, GroupRule, SpaceFile
from autoprune.space.space import Scores, Space, Variable


def resolve(
    file: SpaceFile,
    graph: ChannelGraph,
    importance: Scores | None = None,
) -> Space:
    """Applies a search space to a graph.

    A group's step is the least common multiple of `round_to` and its unit, or its unit where that is wider
    than the group. Its smallest width is the least multiple of the step, or else the dense width, that is at
    least `min_width` and at least (1 - max_ratio) of the dense width. With a `max_ratio` of 1 it may also be
    emptied.

    Args:
        file: the search space.
        graph: the channel groups.
        importance: {group: [width]}; `Space.keep` needs it.

    Raises:
        ConfigError: a glob matches nothing, or nothing is left to prune; or groups with a `max_ratio` of 1
            can't be emptied, alone or together.
    """
    matches = {match.group.name: match for match in match_groups(file, graph)}
    names, dense = tuple(graph.cost.names), np.asarray(graph.cost.dense, dtype=np.int64)
    step, lowest, max_ratio = np.ones_like(dense), dense.copy(), np.zeros(len(dense))
    _check_emptied(graph, [name for name, match in matches.items() if match.max_ratio >= 1])
    variable_of = np.full(len(dense), -1, dtype=np.int64)
    members: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        match = matches.get(name)
        width, unit = int(dense[place]), graph.groups[name].unit
        common = int(np.lcm(unit, file.round_to if match is None else match.round_to))
        step[place] = common if common <= width else unit
        if match is None:
            continue
        floor = max(match.min_width, unit, width * (1 - match.max_ratio) - 1e-9)
        lowest[place] = min(width, int(np.ceil(floor / step[place])) * int(step[place]))
        if lowest[place] < width or match.max_ratio >= 1:
            max_ratio[place] = match.max_ratio
            variable = variable_name(match, file.granularity)
            members.setdefault(variable, []).append(name)
            variable_of[place] = list(members).index(variable)
    if not members:
        raise ConfigError(
            "space: nothing to prune, every group is as narrow as min_width, round_to and max_ratio let it "
            "be; lower min_width or round_to, or raise max_ratio"
        )
    ratio_of = dict(zip(names, max_ratio.tolist(), strict=True))
    variables = tuple(
        Variable(name, tuple(groups), max(ratio_of[group] for group in groups))
        for name, groups in members.items()
    )
    closed = Closure(graph, max_ratio >= 1)(np.where(max_ratio >= 1, 0, lowest))
    return Space(graph, variables, variable_of, max_ratio, closed, step, importance, least=lowest)


def _check_emptied(graph: ChannelGraph, names: Sequence[str]) -> None:
    try:
        if names:
            check_emptied(graph, names)
    except PolicyError as error:
        raise ConfigError(f"space: {error}, with a max_ratio below 1") from error


@dataclass(frozen=True)
class Match:
    """What the file says of one group that may be pruned; see `GroupRule`."""

    group: ChannelGroup
    max_ratio: float
    min_width: int
    tie: str | None
    round_to: int


def match_groups(file: SpaceFile, graph: ChannelGraph) -> list[Match]:
    """Finds the entry that counts for each prunable group, in the graph's order, without the frozen ones.

    Raises:
        ConfigError: a glob matches no group (names the nearest), or only groups that can't be pruned; or
            nothing is left to prune.
    """
    rules: dict[str, GroupRule] = {}
    for rule in file.groups:
        names = fnmatch.filter(graph.groups, rule.match)
        if not names:
            raise ConfigError(
                f"space: `{rule.match}` matches no channel group; nearest: "
                f"{_nearest(rule.match, graph.groups)}; `autoprune inspect` lists them"
            )
        if not rule.frozen and not any(graph.groups[name].prunable for name in names):
            raise ConfigError(
                f"space: `{rule.match}` matches only groups that can't be pruned: `{names[0]}` "
                f"{graph.groups[names[0]].reason}; write frozen: true, or delete the entry"
            )
        rules.update(dict.fromkeys(names, rule))
    matches = [
        Match(
            group,
            chosen.max_ratio,
            chosen.min_width or file.min_width,
            chosen.tie,
            chosen.round_to or file.round_to,
        )
        for name, group in graph.groups.items()
        if group.prunable and (chosen := rules.get(name)) is not None and chosen.max_ratio is not None
    ]
    if not matches:
        raise ConfigError("space: nothing to prune; give at least one prunable group a max_ratio")
    return matches


def variable_name(match: Match, granularity: Granularity) -> str:
    """Name of the variable that decides the group's ratio; groups with the same name share it.

    It follows from the names of modules alone. `layer`: the group's own name. `block`: the innermost module
    that holds all the layers that produce the group, so the inner convolutions of a residual block share one
    variable, and the residual stream of a stage, which all its blocks produce, has its own. `stage`: that
    module cut off before its first number, since PyTorch numbers repeated blocks: `backbone.body.layer1.0` is
    in stage `backbone.body.layer1`.
    """
    if match.tie is not None:
        return f"tie:{match.tie}"
    if granularity == "layer":
        return match.group.name
    block = _shared_module(match.group)
    if granularity == "block":
        return ".".join(block) or match.group.name
    stage = block[: next((place for place, part in enumerate(block) if part.isdigit()), len(block))]
    return ".".join(stage) or match.group.name


def _shared_module(group: ChannelGroup) -> tuple[str, ...]:
    """Path of the innermost module that holds every layer that produces the group."""
    paths = (
        [
            tuple(tensor.split(".")[:-2])  # without the tensor's and the layer's own names
            for (tensor, _, _), role in zip(group.members, group.roles, strict=True)
            if role == "producer"
        ]
        or [tuple(group.name.split(".")[:-1])]
    )
    shared = 0
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return paths[0][:shared]


def _nearest(pattern: str, names: Iterable[str]) -> str:
    plain = pattern.replace("*", "").replace("?", "")
    near = difflib.get_close_matches(plain, list(names), n=3, cutoff=0.3) or list(names)[:3]
    return ", ".join(near)
