"""A search to recover policies of."""

import shutil

import pytest

TRAINED_NORMS = {"norm": "train", "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def run(checked_run, tmp_path_factory):
    """The result of a search, trials of which are recovered; a file's tests may recover in it."""
    from autoprune.run.results import load_result

    ignored = shutil.ignore_patterns("proxies.json")
    out = tmp_path_factory.mktemp("runs") / "one"
    return load_result(shutil.copytree(checked_run, out, ignore=ignored))


@pytest.fixture
def copy_run(run, tmp_path):
    """Makes copies of the run, none of whose policies is recovered; each copy is for one recovery."""

    def copy(name="run"):
        return shutil.copytree(run.run, tmp_path / name, ignore=shutil.ignore_patterns("recovered"))

    return copy


@pytest.fixture(scope="module")
def frozen_run(demo_settings, made_once, tmp_path_factory):
    """A search on weights with frozen norms, as all pretrained ones of torchvision have them.

    Its policy is recovered with trained norms. A file's tests may recover in it; the weights lie beside it.
    """
    from autoprune.detectors import load_dense, save_state, with_norm
    from autoprune.recovery.recover import recover
    from autoprune.run.results import load_result
    from autoprune.search.pipeline import search

    def make(folder):
        folder.mkdir()
        model, _ = load_dense(
            demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
        )
        save_state(with_norm(model, "frozen"), folder / "dense.safetensors")
        settings = {**demo_settings, "weights": str(folder / "dense.safetensors")}
        search({**settings, "rungs": (0,), "trials": 1, "out": folder / "run"})
        recover(folder / "run", **TRAINED_NORMS)

    folder = shutil.copytree(made_once("frozen", make), tmp_path_factory.mktemp("runs") / "frozen")
    return load_result(folder / "run")
