"""`schema` prints what the files are validated against."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoprune.config import Config

from .conftest import best_recovered

Run = Callable[..., Any]


def test_the_schema_is_that_of_the_settings(autoprune: Run) -> None:
    schema = json.loads(autoprune("schema").out)
    assert schema["properties"].keys() == Config.model_fields.keys()
    assert all(entry.get("description") for entry in schema["properties"].values()), (
        "every setting is explained"
    )
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("kind", ["space", "policy"])
def test_the_files_of_a_run_have_the_keys_of_their_schema(
    autoprune: Run, checked_run: Path, kind: str
) -> None:
    file = checked_run / "space.yaml" if kind == "space" else best_recovered(checked_run) / "policy.yaml"
    content = yaml.safe_load(file.read_text())
    schema = json.loads(autoprune("schema", f"--{kind}").out)
    assert set(schema["required"]) <= content.keys() <= schema["properties"].keys()


def test_two_schemas_at_once_are_refused(autoprune: Run) -> None:
    assert autoprune("schema", "--space", "--policy").is_refusal("--space", "--policy", "one of them")
