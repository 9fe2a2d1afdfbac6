"""`autoprune schema`: the JSON schema of the YAML files, for editors and as a reference."""

import json
from typing import Annotated

import typer
from pydantic import BaseModel

from autoprune.config import Config
from autoprune.errors import ConfigError


def schema(
    space: Annotated[
        bool, typer.Option("--space", help="Print the schema of search space files instead.")
    ] = False,
    policy: Annotated[
        bool, typer.Option("--policy", help="Print the schema of policy files instead.")
    ] = False,
) -> None:
    """Print the JSON schema of settings files: type, default and meaning of every key."""
    if space and policy:
        raise ConfigError("--space and --policy are two schemas; give one of them")
    model: type[BaseModel] = Config
    if space:
        from autoprune.space.file import SpaceFile

        model = SpaceFile
    elif policy:
        from autoprune.policy import PolicyFile

        model = PolicyFile
    print(json.dumps(model.model_json_schema(), indent=2))
