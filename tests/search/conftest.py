"""One search that the tests of the folder read, and what they compare of searches."""

import shutil

import pytest


@pytest.fixture(scope="session")
def finished_run(demo_settings, made_once):
    """The result of a search of nine trials: warm starts, and trials of the sampler; to read."""
    from autoprune.run.results import load_result
    from autoprune.search.pipeline import search

    settings = {**demo_settings, "trials": 9}
    return load_result(made_once("nine_trials", lambda folder: search({**settings, "out": folder})))


@pytest.fixture
def copied_run(finished_run, tmp_path):
    """The folder of a copy of the finished run, which may be written to."""
    return shutil.copytree(finished_run.run, tmp_path / "copied")


@pytest.fixture
def scored_settings(finished_run, demo_settings, tmp_path):
    """Settings of a search in the space of the finished run, beside which its scores lie."""
    from autoprune.task.scoring import scores_beside

    space = tmp_path / "scored.yaml"
    shutil.copy(finished_run.run / "space.yaml", space)
    shutil.copy(finished_run.run / "importance.safetensors", scores_beside(space))
    return {**demo_settings, "space": space}


@pytest.fixture
def l2_space(finished_run, tmp_path):
    """A copy of the space of the finished run to edit, by a criterion that reads no images."""
    space = tmp_path / "space.yaml"
    space.write_text(
        (finished_run.run / "space.yaml").read_text().replace("\ncriterion: joint ", "\ncriterion: l2 ")
    )
    return space


def outcome(result):
    """What has to repeat under the same seed: of each trial all but the times."""
    return [
        (r.number, r.origin, r.state, dict(r.widths), [m["map"] for m in r.rungs]) for r in result.records
    ]
