"""The search space as a person writes it: `space.yaml`, with globs that match channel groups."""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from autoprune.config import Criterion, Strict, first_problem
from autoprune.errors import ConfigError
from autoprune.files import read_yaml
from autoprune.graph import ChannelGraph, ChannelGroup

Granularity = Literal["layer", "block", "stage"]


class GroupRule(Strict):
    """One entry of `groups`. Where several match a group, the last one counts.

    Attributes:
        match: a glob over group names; `*` also matches dots.
        max_ratio: largest fraction of the group's channels that a trial may remove.
        frozen: keep the groups whole.
        tie: groups with the same word share one ratio, relative to each one's `max_ratio`.
        min_width: smallest number of channels kept, in place of the file's.
        round_to: kept widths are multiples of this, in place of the file's.
    """

    match: str = Field(min_length=1)
    max_ratio: float | None = Field(None, gt=0, lt=1)
    frozen: bool = False
    tie: str | None = Field(None, min_length=1)
    min_width: int | None = Field(None, ge=1)
    round_to: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.frozen == (self.max_ratio is not None):
            raise ValueError(f"`{self.match}` needs either max_ratio (above 0, below 1) or frozen: true")
        if self.frozen and (self.tie, self.min_width, self.round_to) != (None, None, None):
            raise ValueError(f"`{self.match}` is frozen: leave out tie, min_width and round_to")
        return self


class SpaceFile(Strict):
    """A search space: which groups are pruned, by how much at most. Groups that no entry matches stay whole.

    Attributes:
        model: the detector's name, as in the settings.
        model_arguments: keyword arguments of its builder.
        input_size: height and width in pixels that GFLOPs are counted at.
        criterion: what ranks the channels within a group.
        granularity: what shares one ratio: nothing (`layer`), the groups of one block, or of one stage.
        round_to: kept widths are multiples of this, in whole units.
        min_width: smallest number of channels that a group keeps.
        groups: the entries.
    """

    model: str
    model_arguments: dict[str, Any] = Field({})
    input_size: tuple[int, int]
    criterion: Criterion = "joint"
    granularity: Granularity = "layer"
    round_to: int = Field(8, ge=1)
    min_width: int = Field(8, ge=1)
    groups: tuple[GroupRule, ...] = Field(min_length=1)

    @staticmethod
    def load(path: Path) -> "SpaceFile":
        """Reads a search space.

        Raises:
            ConfigError: the file can't be read, a key is unknown, or a value is out of range.
        """
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ConfigError(f"{path} is not a search space: write `model:`, `input_size:`, `groups:` lines")
        try:
            return SpaceFile.model_validate(content)
        except ValidationError as error:
            place = error.errors()[0]["loc"]
            keys = list(SpaceFile.model_fields)
            if len(place) > 1 and place[0] == "groups":
                keys = [f"groups.{place[1]}.{key}" for key in GroupRule.model_fields]
            raise ConfigError(first_problem(error, keys, str(path))) from error


@dataclass(frozen=True)
class Match:
    """What the file says of one group that may be pruned."""

    group: ChannelGroup
    max_ratio: float
    min_width: int
    tie: str | None
    round_to: int


def match_groups(file: SpaceFile, graph: ChannelGraph) -> list[Match]:
    """Finds the entry that counts for each prunable group, in the graph's order; frozen ones are left out.

    Raises:
        ConfigError: a glob matches no group (names the nearest), or only groups that can't be pruned; or
            nothing is left to prune.
    """
    ruling: dict[str, GroupRule] = {}
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
                f"{graph.groups[names[0]].reason}; write frozen: true, or take the entry out"
            )
        ruling.update(dict.fromkeys(names, rule))
    found = [
        Match(group, own.max_ratio, own.min_width or file.min_width, own.tie, own.round_to or file.round_to)
        for name, group in graph.groups.items()
        if group.prunable and (own := ruling.get(name)) is not None and own.max_ratio is not None
    ]
    if not found:
        raise ConfigError("space: nothing to prune; give at least one prunable group a max_ratio")
    return found


def ready_space(model_name: str) -> Path | None:
    """The ready search space of a detector, or ``None``: in the installed package, or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        for path in (folder / f"{model_name}_coco.yaml", folder / f"{model_name}.yaml"):
            if path.is_file():
                return path
    return None


def variable_name(match: Match, granularity: Granularity) -> str:
    """Name of the number that decides the group's ratio; groups of one name share it.

    From the names of modules alone. `layer`: the group's own name. `block`: the innermost module that holds
    all the layers that produce the group, so the inner convolutions of a residual block share one number and
    the residual stream of a stage, which all its blocks produce, has its own. `stage`: that module cut
    before its first number, since PyTorch numbers repeated blocks: `backbone.body.layer1.0` is in stage
    `backbone.body.layer1`.
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
    """Path of the innermost module that holds every layer which produces the group."""
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


def _nearest(pattern: str, names: Mapping[str, Any] | Iterable[str]) -> str:
    plain = pattern.replace("*", "").replace("?", "")
    near = difflib.get_close_matches(plain, list(names), n=3, cutoff=0.3) or list(names)[:3]
    return ", ".join(near)
