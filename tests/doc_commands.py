"""Reads the pages of the documentation, and checks commands without running them.

By the command line's own parser, and by what the source of a script says that it takes.
"""

import ast
import functools
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from autoprune.cli.main import COMMANDS, app
from autoprune.cli.settings import joined, parse_size
from autoprune.config import Config, make_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Programs of others, and what is known of them: their commands, or nothing.
FOREIGN: dict[str, set[str]] = {
    "ray": {"start", "get-auth-token"},
    "export": set(),
    "diff": set(),
    "ruff": {"check"},
    "mypy": set(),
    "source": set(),
}
FENCE = re.compile(r"^([ \t]*)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its page, its language and its text."""

    page: Path
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    return [
        block for block in blocks_in(page, page.read_text(encoding="utf-8")) if block.language in languages
    ]


def blocks_in(page: Path, text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        yield Block(page, match[2], "\n".join(line.removeprefix(match[1]) for line in match[3].splitlines()))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(block: Block) -> Iterator[str]:
    """Each command of a bash block: continued lines joined, comments and operators taken off."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        words.whitespace_split = True
        command: list[str] = []
        for word in words:
            if word and set(word) <= set("&|;<>"):
                yield shlex.join(command)
                command = []
            else:
                command.append(word)
        if command:
            yield shlex.join(command)


def check(words: list[str]) -> None:
    """Fails where a program does not know the arguments."""
    program, *arguments = words
    if program == "autoprune":
        parse_autoprune(arguments)
    elif program in ("python", "torchrun"):
        check_python(program, arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program == "pytest":
        check_pytest(arguments)
    else:
        assert program in FOREIGN, f"teach this test what `{program}` is"
        assert not FOREIGN[program] or arguments[0] in FOREIGN[program], words


def parse_autoprune(arguments: list[str]) -> None:
    """Parses by the command line's own parser, and validates the settings; runs nothing."""
    command = command_of(arguments)
    given = command.make_context(arguments[0], arguments[1:]).params
    if "config" not in given:  # a command without settings
        return
    values = {name: joined(given.get(name)) for name in Config.model_fields}
    fields = {name: value for name, value in values.items() if value is not None}
    if "model_arguments" in fields:
        fields["model_arguments"] = json.loads(fields["model_arguments"])
    if "input_size" in fields:
        fields["input_size"] = parse_size(fields["input_size"], "--input-size")
    make_config(**fields)


def command_of(arguments: list[str]) -> Any:
    name = arguments[0] if arguments else ""
    assert name in COMMANDS, f"there is no command `autoprune {name}`"
    return _group().commands[name]


@functools.cache
def _group() -> Any:
    return typer.main.get_command(app)


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def check_python(program: str, arguments: list[str]) -> None:
    if program == "torchrun":
        place = arguments.index("-m")
        assert all(name in ("--nproc-per-node",) for name in arguments[:place] if name.startswith("-"))
        arguments = arguments[place:]
    if arguments[0] == "-m":
        module = arguments[1]
        assert importlib.util.find_spec(module) is not None
        if module == "autoprune":
            parse_autoprune(arguments[2:])
        return
    script = ROOT / arguments[0]
    assert script.is_file(), f"there is no {arguments[0]}"
    known = script_options(script)
    for word in arguments[1:]:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{arguments[0]} has no {word}; it has {sorted(known)}"


@functools.cache
def script_options(script: Path) -> frozenset[str]:
    """Options that the script's parser takes, read off its source and that of the helpers beside it."""
    names = [node.module for node in ast.walk(tree_of(script)) if isinstance(node, ast.ImportFrom)]
    helpers = [path for name in names if (path := script.with_name(f"{name}.py")).is_file()]
    return frozenset(
        argument.value
        for source in (script, *helpers)
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for argument in node.args
        if isinstance(argument, ast.Constant)
    )


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in arguments[1:]:
        if (match := re.fullmatch(r"(autoprune|\.)(?:\[([\w,-]+)\])?", word)) is None:
            assert word == "-e", f"`pip install {word}` installs something else"
        elif match[2]:
            assert {*match[2].split(",")} <= {*project["optional-dependencies"]}, word


def check_pytest(arguments: list[str]) -> None:
    takes = {"-n", "-k", "-m"}
    paths = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if not word.startswith("-") and before not in takes
    ]
    assert all((ROOT / path).exists() for path in paths), paths
