"""`autoprune schema`: the JSON schema of the YAML files, for editors and for reading."""

import json
from typing import Annotated

import typer
from pydantic import BaseModel

from autoprune.config import Config


def schema(
    space: Annotated[bool, typer.Option("--space", help="The schema of a search space file.")] = False,
    policy: Annotated[bool, typer.Option("--policy", help="The schema of a policy file.")] = False,
) -> None:
    """Print the JSON schema of the settings file: every key, its type, default and meaning."""
    model: type[BaseModel] = Config
    if space:
        from autoprune.space.derive import SpaceFile

        model = SpaceFile
    elif policy:
        from autoprune.policy import PolicyFile

        model = PolicyFile
    print(json.dumps(model.model_json_schema(), indent=2))
