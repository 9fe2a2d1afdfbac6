"""Holds README, CONTRIBUTING and docs/ to what the package does: commands, Python, links, paths and figures.

Commands are parsed, not run: by the command line's own parser, by `bash -n`, by the help of a script.
"""

import ast
import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

import autoprune
from autoprune.cli.main import COMMANDS
from autoprune.config import MAY_CHANGE, Config, make_config
from autoprune.fields import VENDORS
from autoprune.policy import PolicyFile
from autoprune.run import names as run_names
from autoprune.space.file import GroupRule

from .doc_commands import (
    PAGES,
    ROOT,
    Block,
    blocks,
    blocks_in,
    check,
    command_of,
    commands,
    options_of,
    prose,
    tree_of,
)

LINKING = [*PAGES, ROOT / "CHANGELOG.md"]  # which names what is gone as well
README_BYTES = 7000
# of benchmark scripts, in running text
OTHER_OPTIONS = {
    "--budgets",
    "--methods",
    "--recoveries",
    "--recoveries-each",
    "--recovery",
    "--set",
    "--sibling",
}
OF_ALL_COMMANDS = {"--debug", "--help"}
LINK = re.compile(r"!?\[[^\]\[]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+)\s+(.*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")


COMMAND_LINES = [
    pytest.param(command, id=f"{page.name}: {command[:60]}")
    for page in PAGES
    for block in blocks(page, "bash")
    for command in commands(block)
] + [
    pytest.param(command, id=f"help of {name}")
    for name, (_, example) in COMMANDS.items()
    for command in commands(Block(ROOT / "autoprune/cli/main.py", "bash", example.split(">")[0]))
]


# commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_bash_parses(page: Path) -> None:
    for block in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page.name}: {done.stderr}\n{block.text}"


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_a_command_can_be_typed(command: str) -> None:
    check(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_in_the_text_exist(page: Path) -> None:
    every = {option for name in COMMANDS for option in options_of(command_of([name]))}
    every |= OTHER_OPTIONS | OF_ALL_COMMANDS
    for match in INLINE.finditer(prose(page)):
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", match[1]))
        if re.match(r"autoprune [a-z]", match[1]):  # mentioned, mostly without the arguments that it needs
            assert flags <= options_of(command_of(shlex.split(match[1])[1:])), match[1]
        elif match[1].startswith("--"):
            assert flags <= every, match[1]


def test_the_two_commands_are_two() -> None:
    """As `.ci/run` reads them."""
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "<!-- two commands -->" in script
    part = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("<!-- two commands -->")[1]
        .split("<!-- end -->")[0]
    )
    assert len([line for line in part.splitlines() if line and not line.startswith(("```", "#"))]) == 2


# Python and YAML


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_names_exist(page: Path) -> None:
    if page.name == "vendors.md":
        for library in VENDORS:
            pytest.importorskip(library)
    for block in blocks(page, "python"):
        nodes = list(ast.walk(ast.parse(block.text, filename=page.name)))
        modules: dict[str, Any] = {}
        for node in nodes:
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names if not _is_elsewhere(name.name)]
                modules |= {name: importlib.import_module(name) for name in names}
            elif isinstance(node, ast.ImportFrom):
                home = importlib.import_module(node.module or "")
                assert all(hasattr(home, name.name) for name in node.names), ast.unparse(node)
        for node in nodes:
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "autoprune":
                assert node.attr in autoprune.__all__, ast.unparse(node)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
                assert hasattr(modules[ast.unparse(node.value)], node.attr), ast.unparse(node)


def _is_elsewhere(module: str) -> bool:
    """Whether it is one that programs on other machines import, and that this one lacks."""
    return module == "cv2" and importlib.util.find_spec(module) is None


def test_the_first_python_example_runs() -> None:
    block = next(block for block in blocks(ROOT / "docs/python-api.md", "python") if "analyze" in block.text)
    names: dict[str, Any] = {}
    exec(compile(block.text, "python-api.md", "exec"), names)
    before, after = (names[name] for name in ("model", "pruned"))
    assert sum(p.numel() for p in after.parameters()) < sum(p.numel() for p in before.parameters())
    with torch.inference_mode():
        assert {"boxes", "scores", "labels"} <= {*after([torch.rand(3, 64, 64)])[0]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_what_the_files_take(page: Path) -> None:
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block.text)
        if "format" in content:
            PolicyFile.model_validate(content)
        elif "groups" in content:
            assert [GroupRule.model_validate(entry) for entry in content["groups"]]
        else:
            assert make_config(**content).model_fields_set == {*content}


# links, paths, sizes


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    return frozenset(anchor(match[2]) for match in HEADING.finditer(prose(page)))


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(prose(page)):
        if match[1].startswith(("https://", "http://", "mailto:")):
            continue
        name, _, fragment = match[1].partition("#")
        target = Path(os.path.normpath(page.parent / name)) if name else page
        assert target.exists(), f"{page.name}: {match[1]}"
        if fragment:
            assert fragment in anchors(target), f"{page.name}: {match[1]}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {match[1].partition("#")[0] for match in LINK.finditer(prose(ROOT / "README.md"))}
    assert {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    """Files and folders of the repository in backticks."""
    for match in INLINE.finditer(prose(page)):
        if re.match(r"(autoprune|tests|scripts|search_spaces|docs)/[\w./-]*$", match[1]):
            assert (ROOT / match[1]).exists(), f"{page.name}: {match[1]}"


def test_tables_in_the_architecture_exist() -> None:
    """`NAME` in a row of *Where do I add* stands in a file that the row names."""
    section = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("## Where do I add")[1]
    rows = re.findall(r"^\| an? .*\|$", section, re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        table, *_ = INLINE.findall(row.split("|")[3])
        paths = [ROOT / word for word in INLINE.findall(row) if (ROOT / word).is_file()]
        assert any(re.search(rf"\b{table}\b", path.read_text(encoding="utf-8")) for path in paths), row


def test_folders_of_the_package_are_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = [path.parent.name for path in (ROOT / "autoprune").glob("*/__init__.py")]
    assert folders
    assert not [name for name in folders if f"| `autoprune/{name}/` |" not in text]


def test_the_picture_has_the_layers_in_their_order() -> None:
    tree = tree_of(ROOT / "tests/test_layers.py")
    (layers,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )
    (picture,) = (
        block.text for block in blocks(ROOT / "docs/architecture.md", "mermaid") if "flowchart" in block.text
    )
    places = []
    for names in layers:
        folders = [name for name in names if "." in name or (ROOT / "autoprune" / name).is_dir()]
        matches = {name: re.search(rf"(?<![\w.]){name}(?![\w.])", picture) for name in folders}
        assert all(matches.values()), matches
        if folders:
            places.append(sorted(match.start() for match in matches.values() if match))
    assert all(low[-1] < high[0] for low, high in pairwise(places))
    files = picture.split("single files: ")[1].split(", …")[0].split(", ")
    assert all((ROOT / f"autoprune/{name}.py").is_file() for name in files), files


def test_every_criterion_and_sampler_is_explained() -> None:
    text = (ROOT / "docs/search.md").read_text(encoding="utf-8")
    for field in ("criterion", "sampler"):
        choices = get_args(Config.model_fields[field].annotation)
        assert choices
        assert not [name for name in choices if f"`{name}`" not in text]


def test_what_may_change_on_resume_is_listed() -> None:
    section = (ROOT / "docs/search.md").read_text(encoding="utf-8").split("| may change | flags |")[1]
    flags = re.findall(r"`--([\w-]+)`", section.split("\n\n")[0])
    assert sorted(name.replace("-", "_") for name in flags) == sorted(MAY_CHANGE)


def test_every_warm_start_is_explained() -> None:
    """In the table of origins, by the names that the screen shows."""
    from autoprune.importance import CRITERIA, CURVES

    section = (ROOT / "docs/search.md").read_text(encoding="utf-8").split("| from | policy |")[1]
    origins = set(re.findall(r"`([a-z0-9_ ]+)`", section.split("\n\n")[0]))
    published = {f"{other.one_shot} {name}" for name, other in CRITERIA.items() if other.one_shot}
    own = {f"{kind} {Config().criterion}" for kind in ("knapsack", "global", "greedy")}
    own |= {f"{kind} {CURVES}" for kind in ("knapsack", "greedy")}
    sized = {"dense at 96 px", "uniform at 96 px"}
    assert origins == {"uniform", "searched", "sampler"} | own | published | sized


def test_every_file_of_a_run_is_explained() -> None:
    text = (ROOT / "docs/output-files.md").read_text(encoding="utf-8")
    files = {
        name: value
        for name, value in vars(run_names).items()
        if name.endswith(("_FILE", "_FOLDER", "_PICTURE"))
    }
    assert files
    shown = {name: value for name, value in files.items() if not value.startswith(".")}
    assert not {name: value for name, value in shown.items() if value not in text and "BASELINE" not in name}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


@pytest.mark.parametrize("name", ["benchmarks.md", "speed.md"])
def test_figures_stand_beside_the_command_that_prints_them(name: str) -> None:
    """In each section of the benchmarks, a table with numbers has a command beside it that exists."""
    page = ROOT / "docs" / name
    sections = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(sections) > 5
    for section in sections:
        tables = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
        programs = [
            command
            for block in blocks_in(page, section)
            if block.language == "bash"
            for command in commands(block)
        ]
        title = section.splitlines()[0]
        assert programs or not re.search(r"\d", "".join(section.splitlines()[1:])), title
        if any(re.search(r"\d", table) for table in tables):
            assert any(re.match(r"(python scripts/|autoprune )", program) for program in programs), title
        for program in programs:
            check(shlex.split(program))


def test_retired_words_are_a_table() -> None:
    """The test of the language reads it."""
    part = (ROOT / "tests/retired_words.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0]] == ["retired", "use"]
    assert all(len(row) == 2 and all(cell.strip() for cell in row) for row in rows[2:])
    words = [row[0].strip() for row in rows[2:]]
    assert len(words) == len(set(words)) > 20


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "authors", "message"} <= {*citation}


def test_the_interpreter_is_that_of_the_project() -> None:
    """README names the Python that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["requires-python"].removeprefix(">=")
    assert f"Python {version} or later" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert sys.version_info >= tuple(map(int, version.split(".")))
