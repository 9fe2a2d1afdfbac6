"""Tests of the consent to run a user's factory: a file alone never makes autoprune run code."""

import json
import os
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from autoprune import trust
from autoprune.cli.main import main
from autoprune.config import make_config
from autoprune.data import demo_detector
from autoprune.detectors import build, load_dense
from autoprune.errors import ModelError
from autoprune.fields import ModelSpec
from autoprune.files import cache_folder
from autoprune.policy import Policy
from autoprune.search.session import load_evaluator
from autoprune.space.derive import derive_space
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import score_channels

FACTORY = "evil_factory:make"
CODE = """
from pathlib import Path
Path("ran").touch()

def make(num_classes):
    from autoprune.data import demo_detector
    from autoprune.detectors import build
    return build(demo_detector.MODEL)
"""
POLICY = Policy(ModelSpec(name=FACTORY, num_classes=4), "0" * 64, "joint", (64, 64), {"a": 4}, {"a": (0, 1)})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a factory that leaves a file where it runs, and a user without history."""
    (tmp_path / "evil_factory.py").write_text(CODE)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trust, "_files", {})
    monkeypatch.setattr(trust, "_consented", set())
    monkeypatch.delitem(sys.modules, "evil_factory", raising=False)
    return tmp_path


def policy_file(place: Path) -> Path:
    POLICY.save(place / "policy.yaml")
    return place / "policy.yaml"


def folder(place: Path) -> Path:
    POLICY.save(place / "detector" / "policy.yaml")
    (place / "detector" / "model.safetensors").write_bytes(Path(demo_detector.WEIGHTS).read_bytes())
    return place / "detector"


COMMANDS = {
    "inspect": ("policy", "inspect {file}"),
    "apply": ("policy", "apply {file} --weights {weights} --to out"),
    "eval": ("policy", "eval {file} --weights {weights} --data {data}"),
    "eval a folder": ("folder", "eval {file} --data {data}"),
    "latency": ("policy", "latency {file}"),
    "latency of a folder": ("folder", "latency {file}"),
    "export": ("folder", "export {file} --to out"),
    "recover": ("run", "recover {file}"),
    "search": (
        "space",
        "search --space {file} --data {data} --weights {weights} --budget-gflops 70% --out out",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_factory_that_only_a_file_names_does_not_run(place, command, demo_settings, request, capsys):
    kind, line = COMMANDS[command]
    if kind == "run":
        file = place / "run"
        source = request.getfixturevalue("checked_run")
        shutil.copytree(source, file)
        named = file / "config.yaml"
        named.write_text(yaml.safe_dump({**yaml.safe_load(named.read_text()), "model": FACTORY}))
    elif kind == "space":
        file = named = place / "space.yaml"
        groups = [{"match": "*", "max_ratio": 0.5}]
        file.write_text(json.dumps({"model": FACTORY, "input_size": [64, 64], "groups": groups}))
    else:
        file = policy_file(place) if kind == "policy" else folder(place)
        named = file if kind == "policy" else file / "policy.yaml"
    words = line.format(file=file, weights=demo_settings["weights"], data=demo_settings["data"]).split()
    assert main(words) == 2
    message = capsys.readouterr().err
    assert str(named) in message
    assert f"{trust.VARIABLE}={FACTORY}" in message
    assert not (place / "ran").exists()
    assert not (place / "out").exists()


def test_autoprune_load_asks_too(place):
    import autoprune

    with pytest.raises(ModelError, match=f"policy.yaml names the factory {FACTORY}.*{trust.VARIABLE}"):
        autoprune.load(folder(place))
    assert not (place / "ran").exists()


@pytest.mark.parametrize("how", ["flag", "argument", "config", "python", "variable"])
def test_what_the_user_named_runs_and_is_remembered(place, how, monkeypatch, capsys):
    (place / "mine.yaml").write_text(f"model: {FACTORY}\n")
    given = {
        "flag": ["--model", FACTORY],
        "argument": [FACTORY],
        "config": ["--config", "mine.yaml"],
    }
    if how in given:
        assert main(["inspect", *given[how]]) == 0
    elif how == "python":
        load_dense(FACTORY, num_classes=4)
    else:
        monkeypatch.setenv(trust.VARIABLE, f"other:make, {FACTORY}")
    monkeypatch.setattr(trust, "_consented", set())  # a later process
    capsys.readouterr()
    assert main(["inspect", str(policy_file(place))]) == 2
    assert "the policy is for another model" in capsys.readouterr().err  # it was built
    assert (place / "ran").exists()
    remembered = cache_folder() / trust.TRUSTED_FILE
    assert remembered.exists() == (how != "variable")


@pytest.mark.parametrize("how", ["others may write", "of another user", "a link"])
def test_a_memory_that_another_user_can_have_written_is_not_believed(place, how, monkeypatch):
    trust.consent(FACTORY)
    monkeypatch.setattr(trust, "_consented", set())  # a later process
    trust.note_file(FACTORY, place / "policy.yaml")
    trust.require_consent(FACTORY)
    monkeypatch.setattr(trust, "_consented", set())
    file = cache_folder() / trust.TRUSTED_FILE
    if how == "others may write":
        file.chmod(0o620)
    elif how == "a link":
        file.rename(place / "elsewhere")
        file.symlink_to(place / "elsewhere")
    else:
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(ModelError, match=f"names the factory {FACTORY}, code that you have not used here"):
        trust.require_consent(FACTORY)


def test_consent_is_remembered_whatever_the_umask(place, monkeypatch):
    before = os.umask(0o002)
    try:
        trust.consent(FACTORY)
    finally:
        os.umask(before)
    monkeypatch.setattr(trust, "_consented", set())
    trust.note_file(FACTORY, place / "policy.yaml")
    trust.require_consent(FACTORY)


def test_a_worker_of_another_machine_does_not_ask(place, demo_settings, monkeypatch):
    """It has the settings from the driver, where the user consented, and a cache without history."""
    trust.note_file(FACTORY, place / "policy.yaml")
    trust.consent(FACTORY)
    data, weights = demo_settings["data"], demo_settings["weights"]
    config = make_config(model=FACTORY, data=data, weights=weights, input_size=(128, 128), device="cpu")
    task = load_task(config)
    importance = score_channels(task, "l1")
    space = derive_space(task.graph, importance, task.spec, task.input_size, "l1")
    sent = pickle.dumps(partial(load_evaluator, config, space, importance, None, None))

    monkeypatch.setattr(trust, "_files", {})
    monkeypatch.setattr(trust, "_consented", set())
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(place / "cache-of-the-worker"))
    (place / "ran").unlink()
    monkeypatch.delitem(sys.modules, "evil_factory")
    assert pickle.loads(sent)().task.spec.name == FACTORY
    assert (place / "ran").exists()


def test_consent_is_to_one_name(place):
    trust.consent(FACTORY)
    trust.note_file("evil_factory:other", place / "policy.yaml")
    with pytest.raises(ModelError, match="evil_factory:other"):
        build(ModelSpec(name="evil_factory:other", num_classes=4))
    assert not (place / "ran").exists()


@pytest.mark.parametrize("name", ["os:system\nother:make", "a:b,c:d", ":make", "os:"])
def test_a_name_that_would_trust_several_is_refused(place, name):
    trust.consent(name)
    with pytest.raises(ModelError, match="name it as package"):
        build(ModelSpec(name=name, num_classes=4))
    assert not (cache_folder() / trust.TRUSTED_FILE).exists()


def test_a_cache_that_cannot_be_written_stops_nothing(place, monkeypatch, capsys):
    (place / "blocked").write_text("a file, where the folder would be")
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(place / "blocked"))
    assert main(["inspect", FACTORY]) == 0
    assert (place / "ran").exists()
    assert f"{FACTORY} is not remembered" in capsys.readouterr().err


def test_names_of_torchvision_need_no_consent(place):
    trust.note_file("fcos_resnet18_fpn", place / "policy.yaml")
    build(ModelSpec(name="fcos_resnet18_fpn", arguments={"min_size": 64, "max_size": 64}, num_classes=4))
