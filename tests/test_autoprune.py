"""The public API: names load on first use, and `autoprune.search` is a function and a folder at once."""

import ast
import copy
import importlib
import inspect
import multiprocessing
import pickle
import pydoc
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import autoprune
from autoprune.config import ModelSpec
from autoprune.errors import AutopruneError, ConfigError


def run(code: str) -> str:
    """Runs ``code`` in an interpreter of its own and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_names_load_what_they_need_on_first_use_and_no_more():
    code = (
        "import sys, autoprune\n"
        "def loaded(): return [name for name in ('torch', 'optuna', 'ray') if name in sys.modules]\n"
        "print(loaded()); autoprune.ChannelGraph; print(loaded())"
    )
    assert run(code).splitlines() == ["[]", "['torch']"]


@pytest.mark.parametrize("name", autoprune.__all__)
def test_every_public_name_stays_what_it_is_at_first(name):
    first = getattr(autoprune, name)
    assert getattr(autoprune, name) is first
    assert callable(first) or isinstance(first, str)


@pytest.mark.parametrize("before", ["pass", "import autoprune.search", "from autoprune import search"])
def test_search_is_one_callable_however_it_is_reached_first(before):
    code = (
        f"{before}\nimport autoprune\nprint(callable(autoprune.search), autoprune.search is autoprune.search)"
    )
    assert run(code) == "True True"


def test_search_is_called_before_and_after_its_folder_is_imported():
    unknown = {"model": "retinanet_resnet50_fpn", "no_such_field": 1}
    with pytest.raises(ConfigError, match="no_such_field"):
        autoprune.search(unknown)
    pipeline = importlib.import_module("autoprune.search.pipeline")
    with pytest.raises(ConfigError, match="no_such_field"):
        autoprune.search(unknown)
    assert autoprune.search.pipeline is pipeline


def test_search_goes_to_another_process_and_is_copied():
    assert pickle.loads(pickle.dumps(autoprune.search)) is autoprune.search
    assert copy.deepcopy(autoprune.search) is autoprune.search
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        pytest.raises(ConfigError, match="no_such_field"),
    ):
        pool.submit(autoprune.search, {"model": "retinanet_resnet50_fpn", "no_such_field": 1}).result()


def test_completion_shows_the_public_names():
    assert dir(autoprune) == sorted(autoprune.__all__)


def test_search_says_how_it_is_called():
    assert list(inspect.signature(autoprune.search).parameters) == ["config", "accept_data_change"]
    assert "autoprune.search(config)" in pydoc.render_doc(autoprune.search)


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match=r"^module 'autoprune' has no attribute 'serach'$"):
        autoprune.serach  # noqa: B018
    assert not hasattr(autoprune, "_anything")
    with pytest.raises(ImportError, match="cannot import name 'serach'"):
        exec("from autoprune import serach")


MODEL = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1))
POLICY = autoprune.Policy(ModelSpec(name="any", num_classes=2), "", "l2", (8, 8), {"0": 8}, {"0": (1,)})
GRAPH = autoprune.analyze(MODEL, (torch.rand(1, 3, 8, 8),))


class NoWeights(nn.Module):
    def forward(self, images):
        return images


@pytest.mark.parametrize(
    ("function", "argument", "what"),
    [
        (autoprune.load, "folder", "the folder of"),
        (autoprune.search, "config", "settings as a dict, or the path of"),
        (autoprune.Policy.load, "path", "the path of"),
        (POLICY.save, "path", "the path of"),
        (POLICY.apply, "dense_model", "a torch.nn.Module"),
        (lambda model: autoprune.prune(model, GRAPH, {}), "the model", "a torch.nn.Module"),
        (lambda graph: autoprune.prune(MODEL, graph, {}), "the graph", "that of autoprune.analyze"),
        (lambda keep: autoprune.prune(MODEL, GRAPH, keep), "keep", "a dict of channels kept"),
        (lambda model: autoprune.analyze(model, ()), "the model", "a torch.nn.Module"),
        (lambda inputs: autoprune.analyze(MODEL, inputs), "example_inputs", "a tuple of"),
    ],
)
@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "None"), (5, "an int"), (b"x", "a bytes"), (nn.Module, "the class Module")],
)
def test_an_argument_of_another_kind_is_one_line_that_names_it(function, argument, what, value, kind):
    with pytest.raises(AutopruneError, match=rf"^{argument} is {kind}; give {what}[^\n]*$"):
        function(value)


@pytest.mark.parametrize("function", [autoprune.load, autoprune.Policy.load, autoprune.search, POLICY.save])
@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_names_no_file_is_one_line(function, path):
    with pytest.raises(
        AutopruneError, match=r"^(folder|path|config) is '.*', which names no file; give [^\n]*$"
    ):
        function(path)


def test_a_path_too_long_for_the_system_is_one_line():
    with pytest.raises(AutopruneError, match=r"aaa holds no policy\.yaml; give a folder"):
        autoprune.load("a" * 5000)


@pytest.mark.parametrize(("key", "shown"), [(1, "1"), (None, "None"), (("a", 2), r"\('a', 2\)")])
def test_keys_that_are_no_names_of_settings_are_named(key, shown):
    with pytest.raises(ConfigError, match=f"^unknown key `{shown}` in the settings"):
        autoprune.search({key: 2})


def test_a_policy_does_not_fit_a_model_without_weights():
    with pytest.raises(AutopruneError, match="the policy is for another model: no group `0` here"):
        POLICY.apply(NoWeights())


@pytest.mark.parametrize("kind", [torch.tensor, np.int32])
def test_a_width_may_be_any_kind_of_whole_number(kind):
    assert GRAPH.gflops({"0": kind(4)}) == GRAPH.gflops({"0": 4}) < GRAPH.gflops()


@pytest.mark.parametrize("width", [2.5, "8", torch.zeros(9, 9), [8], True, torch.tensor(True), None])
def test_a_width_that_is_no_whole_number_is_one_line(width):
    with pytest.raises(AutopruneError, match=r"^group `0`: a width is a whole number, not [^\n]*$"):
        GRAPH.gflops({"0": width})


def documented_calls():
    """The calls in the table of docs/python-api.md, as syntax trees."""
    lines = (Path(__file__).parent.parent / "docs" / "python-api.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `autoprune.")]
    return [ast.parse(re.search("`([^`]+)`", cell)[1], mode="eval").body for cell in cells]


@pytest.mark.parametrize("call", documented_calls(), ids=ast.unparse)
def test_the_calls_of_the_documentation_have_the_arguments_of_the_functions(call):
    module, _, names = ast.unparse(call.func).partition(".")
    function = importlib.import_module(module)
    for name in names.split("."):
        function = getattr(function, name, None) or importlib.import_module(f"{function.__name__}.{name}")
    inspect.signature(function).bind(*call.args, **{each.arg: each.value for each in call.keywords})


def test_search_passes_all_it_is_given_to_the_pipeline(monkeypatch):
    pipeline, calls = importlib.import_module("autoprune.search.pipeline"), []
    monkeypatch.setattr(pipeline, "search", lambda *given: calls.append(given))
    autoprune.search({"out": "x"})
    autoprune.search({"out": "x"}, accept_data_change=True)
    assert calls == [({"out": "x"}, False), ({"out": "x"}, True)]
