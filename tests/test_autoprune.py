"""The public API: names load on first use, and `autoprune.search` is a function and a folder at once."""

import copy
import importlib
import inspect
import multiprocessing
import pickle
import pydoc
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

import autoprune
from autoprune.errors import ConfigError


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


def test_search_says_how_it_is_called():
    assert list(inspect.signature(autoprune.search).parameters) == ["config"]
    assert "autoprune.search(config)" in pydoc.render_doc(autoprune.search)


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match=r"^module 'autoprune' has no attribute 'serach'$"):
        autoprune.serach  # noqa: B018
    assert not hasattr(autoprune, "_anything")
    with pytest.raises(ImportError, match="cannot import name 'serach'"):
        exec("from autoprune import serach")
