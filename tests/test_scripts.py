"""The benchmark scripts, without running one: their help, their examples, and where each is to be found."""

import argparse
import ast
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from .doc_commands import PAGES, ROOT, Block, blocks, commands, tree_of

BENCH = ROOT / "scripts/bench"
BORROWING = [BENCH / "before_after.py"]  # takes the arguments of `training.py`
SCRIPTS = sorted(
    path
    for folder in (BENCH, BENCH.parent)
    for path in folder.glob("*.py")
    if "ArgumentParser(" in path.read_text(encoding="utf-8").replace("parser: argparse.ArgumentParser", "")
    or path in BORROWING
)
Parse = Callable[[Path, list[str]], argparse.Namespace]


def docstring(script: Path) -> str:
    return ast.get_docstring(tree_of(script)) or ""


def examples() -> Iterator[list[str]]:
    """The words of each command of a script, in the pages and in the scripts' own docstrings."""
    pages = [block for page in PAGES for block in blocks(page, "bash")]
    for script in SCRIPTS:
        shown = re.findall(r"^ *(python scripts/(?:.*\\\n)*.*)$", docstring(script), re.MULTILINE)
        pages.append(Block(script, "bash", "\n".join(shown)))
    for block in pages:
        for command in commands(block):
            if command.startswith("python scripts/"):
                yield shlex.split(command)


class _Parsed(Exception):  # noqa: N818, it is no error
    """Ends a script as soon as its arguments are read."""


@pytest.fixture(scope="module")
def parse() -> Iterator[Parse]:
    """Reads arguments as a script does, in this process: importing torch for each would take minutes."""
    path, modules, environment = list(sys.path), set(sys.modules), dict(os.environ)
    sys.path[:0] = [str(BENCH), str(BENCH.parent)]

    def run(script: Path, arguments: list[str]) -> argparse.Namespace:
        module = import_module(script.stem)
        assert Path(str(module.__file__)) == script
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(script), *arguments])
            if function := vars(module).get("arguments"):
                takes = inspect.signature(function).parameters
                given = [module.__doc__, script not in BORROWING] if takes else []
                result: argparse.Namespace = function(*given)
                return result
            plain = argparse.ArgumentParser.parse_args

            def stop(parser: argparse.ArgumentParser) -> None:
                raise _Parsed(plain(parser))

            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            with pytest.raises(_Parsed) as parsed:
                module.main()
            return parsed.value.args[0]  # type: ignore[no-any-return]

    yield run
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent in (BENCH, BENCH.parent):
            del sys.modules[name]


def test_help_is_the_docstring_as_it_is_written(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SCRIPTS) > 25
    for script in SCRIPTS:
        with pytest.raises(SystemExit, match=r"^0$"):
            parse(script, ["--help"])
        printed = capsys.readouterr().out
        assert docstring(script), script.name
        assert docstring(script) in printed, script.name


def test_scripts_take_the_arguments_of_all_examples(parse: Parse) -> None:
    seen = set()
    for _, script, *arguments in examples():
        parse(ROOT / script, arguments)
        seen.add(ROOT / script)
    assert seen == set(SCRIPTS)


def test_the_benchmarks_begin_with_all_sections_and_scripts() -> None:
    """So that the figures and the script of a question are found in one look."""
    page, speed = (
        (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "speed.md")
    )
    contents = page.split("## Contents\n")[1].split("\n## ")[0]
    for text, path, first in ((page, "", 2), (speed, "speed.md", 0)):
        sections = re.findall(r"^## (.*)$", text, re.MULTILINE)[first:]
        anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in sections}
        assert len(anchors) > 5
        assert not anchors - set(re.findall(rf"\({path}#([\w-]+)\)", contents))
    named = set(re.findall(r"`(\w+\.py)`", contents))
    assert named == {script.name for script in SCRIPTS if script.parent == BENCH}
