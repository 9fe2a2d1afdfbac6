"""The search space as users write it: `space.yaml`, with globs that match channel groups."""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from autoprune.config import Criterion
from autoprune.errors import ConfigError
from autoprune.fields import Pixels
from autoprune.files import read_yaml
from autoprune.trust import note_file
from autoprune.validation import Strict, first_problem

Granularity = Literal["layer", "block", "stage"]
MOST = 65_536  # channels: no layer has more


class GroupRule(Strict):
    """One entry of `groups`. Where several match a group, the last one counts.

    Attributes:
        match: a glob over group names; `*` also matches dots.
        max_ratio: largest fraction of the group's channels that a trial may remove. With 1, it may remove all
            besides what `min_width` keeps otherwise: whole blocks go.
        frozen: keep the groups whole.
        tie: groups with the same word share one variable, relative to each one's `max_ratio`.
        min_width: smallest number of channels kept, in place of the file's.
        round_to: kept widths are multiples of this, in place of the file's.
    """

    match: str = Field(min_length=1)
    max_ratio: float | None = Field(None, gt=0, le=1)
    frozen: bool = False
    tie: str | None = Field(None, min_length=1)
    min_width: int | None = Field(None, ge=1, le=MOST)
    round_to: int | None = Field(None, ge=1, le=MOST)

    @model_validator(mode="after")
    def _either_pruned_or_frozen(self) -> Self:
        if self.frozen == (self.max_ratio is not None):
            raise ValueError(f"`{self.match}` needs either max_ratio (above 0, at most 1) or frozen: true")
        if self.frozen and (self.tie, self.min_width, self.round_to) != (None, None, None):
            raise ValueError(f"`{self.match}` is frozen: omit tie, min_width and round_to")
        return self


class SpaceFile(Strict):
    """A search space: which groups are pruned, by how much at most. Groups that no entry matches stay whole.

    Attributes:
        model: the detector's name, as in the settings.
        model_arguments: keyword arguments of its builder.
        input_size: height and width in pixels that GFLOPs are counted at.
        criterion: what ranks the channels within a group; where the file does not say, the settings do.
        granularity: what shares one variable: nothing (`layer`), the groups of one block, or of one stage.
        round_to: kept widths are multiples of this and of the group's unit.
        min_width: smallest number of channels that a group keeps.
        groups: the entries.
    """

    model: str
    model_arguments: dict[str, Any] = Field({})
    input_size: tuple[Pixels, Pixels]
    criterion: Criterion = "obs"
    granularity: Granularity = "layer"
    round_to: int = Field(8, ge=1, le=MOST)
    min_width: int = Field(8, ge=1, le=MOST)
    groups: tuple[GroupRule, ...] = Field(min_length=1)

    @property
    def has_empty_blocks(self) -> bool:
        """Whether an entry lets groups go as a whole."""
        return any(rule.max_ratio == 1 for rule in self.groups)

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
            file = SpaceFile.model_validate(content)
        except ValidationError as error:
            problem = first_problem(error, SpaceFile, str(path))
            raise ConfigError(
                f"{problem}; correct it there, restore the file, or write one with `autoprune space`"
            ) from error
        note_file(file.model, path)
        return file


def ready_space(model_name: str) -> Path | None:
    """The ready search space of a detector, or ``None``: in the installed package, or in a checkout.

    The file of ``LIBRARY:SOURCE`` has an underscore for the colon; a checkpoint has that of its architecture.
    """
    model_name = re.sub(r"\.(pt|ya?ml)$", "", model_name).replace(":", "_")
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        for path in (folder / f"{model_name}_coco.yaml", folder / f"{model_name}.yaml"):
            if path.is_file():
                return path
    return None
