"""Holds the words of `docs/glossary.md`: retired ones and British spellings appear in no tracked text file.

The table under "Retired words" has one row per entry, `| retired | use |`; a cell may list several retired
forms, separated by commas. A form is

- a phrase: found in any case and across line breaks, with the endings -s, -d, -ed, -ing on its first word;
- an identifier in backticks: found where Python code defines or imports that name, leading underscores aside,
  where a file or folder is called so, and where text quotes it in backticks. The same word in a sentence is
  fine;
- with parentheses, `name()`: found where a function or class is defined by that name;
- a file name in backticks, `name.py`: found where a module is called so, is imported, or is mentioned.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
HEADING = "## Retired words"
FOLDERS = ("autoprune", "scripts", "tests", "docs", "search_spaces", ".ci")
# This file quotes what it looks for. What an earlier version wrote stays as it was.
EXCEPT = ("tests/test_language.py", "tests/earlier_version/", "CHANGELOG.md")

# Words in -ise and -our that are American, too; and all that end in -wise.
AMERICAN = """
advise advertise arise apprise chastise comprise compromise concise demise denoise despise devise disguise
enterprise excise exercise expertise franchise guise imprecise improvise likewise merchandise miser noise
paradise poise porpoise praise precise premise promise raise revise reprise rise supervise surmise surprise
televise treatise turquoise unsupervise vise
contour detour flour four glamour hour our pour scour sour tour velour your
"""
# From a stem to its American spelling, where no rule of endings tells.
BRITISH = {
    "analys(?:e[dr]?|ing)(?!s)": "analyz…",
    "artefact": "artifact",
    "amongst": "among",
    "ageing": "aging",
    "(?:cancel|channel|label|level|marshal|model|signal|total|travel|tunnel)(?:led|ling)": "one l",
    "catalogue": "catalog",
    "catalys(?:e[dr]?|ing)": "catalyz…",
    "centre(?:d|s)?|centring": "center",
    "cheque": "check",
    "(?:de|of)fence": "-fense",
    "fibre": "fiber",
    "fulfil": "fulfill",
    "grey": "gray",
    "judgement": "judgment",
    "learnt": "learned",
    "licence": "license",
    "(?:kilo|centi|milli)?metre": "-meter",
    "mould": "mold",
    "per cent": "percent",
    "programme": "program",
    "sceptic(?:al|ism)?": "skeptic",
    "skilful": "skillful",
    "whilst": "while",
}
RATES = re.compile(
    r"(?<![A-Za-z])(?:images|[kMG]i?B|bytes|GFLOPs|ms|seconds|minutes|hours|steps|trials|epochs|workers|"
    r"threads|CPUs|GPUs)\s+an?\s+"
    r"(step|trial|level|rung|batch|image|pixel|second|minute|epoch|worker|node|budget|round|channel|layer)\b"
)


class Entry(NamedTuple):
    """A retired form and what to write instead."""

    retired: str
    use: str


def read_entries(text: str) -> list[Entry]:
    """The entries of the table under the heading.

    Raises:
        ValueError: there is no such table, or a row has not two cells.
    """
    if HEADING not in text:
        raise ValueError(f"no heading {HEADING!r}")
    section = text.split(HEADING, 1)[1].split("\n## ", 1)[0]
    rows = [line.strip() for line in section.splitlines() if line.lstrip().startswith("|")]
    if not rows or not re.fullmatch(r"\|\s*retired\s*\|\s*use\s*\|", rows[0]):
        raise ValueError("the table must begin with | retired | use |")
    entries = []
    for row in rows[2:]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) != 2 or not all(cells):
            raise ValueError(f"not two cells: {row}")
        entries += [Entry(form.strip(), cells[1]) for form in cells[0].split(",")]
    return entries


def tracked_files() -> list[Path]:
    """Files that git tracks, and those it would; the folders and all at the top that is text."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    names = [name for name in listed.split("\0") if name and not name.startswith(EXCEPT)]
    names = [name for name in names if "/" not in name or name.startswith(tuple(f"{f}/" for f in FOLDERS))]
    return [path for path in (ROOT / name for name in sorted(set(names))) if is_text(path)]


def is_text(path: Path) -> bool:
    if not path.is_file():
        return False
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in content and path.suffix != ".safetensors"


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """The words; between them blanks, and a comment's or quotation's mark after a line break."""
    first, *rest = (re.escape(word) for word in phrase.split())
    words = r"\s+(?:(?:#+|//|>|\*)\s*)?".join([f"{first}(?:s|es|d|ed|ing)?", *rest])
    return re.compile(rf"(?<![\w-]){words}(?![\w-])", re.IGNORECASE)


def names_of(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    """(line, kind, name) of all that Python code defines or imports; none where it can't be parsed.

    Kinds: ``callable``, ``variable``, ``module`` of ours, ``import`` of anything else.
    """
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, "callable", node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, "variable", node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, "variable", node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, "variable", node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                *folders, name = f"{source}{alias.name}".split(".")
                ours = folders[:1] == ["autoprune"]
                # Packages are two deep, so what is imported from a third is no module.
                yield node.lineno, "module" if ours and len(folders) <= 2 else "import", name
                yield from ((node.lineno, "module", folder) for folder in folders if ours)
                if alias.asname:
                    yield node.lineno, "variable", alias.asname


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def find_retired(path: Path, text: str, entries: list[Entry]) -> Iterator[tuple[int, str, str]]:
    """(line, what stands there, what to write instead) of each use of a retired form; line 0 is the name."""
    names = list(names_of(path, text))
    parts = {part.removesuffix(path.suffix) for part in path.parts}
    for retired, use in entries:
        if not retired.startswith("`"):
            for match in phrase_pattern(retired).finditer(text):
                yield line_of(text, match.start()), " ".join(match[0].split()), use
            continue
        name = retired.strip("`")
        bare = name.removesuffix("()").removesuffix(".py").lstrip("_")
        kinds = {"callable", "module", "variable", "import"}
        if name.endswith("()"):
            kinds = {"callable", "module", "import"}
            quoted = re.compile(rf"`(?:[\w.]*\.)?_*{re.escape(bare)}\(\)`")
        elif name.endswith(".py"):
            kinds = {"module"}
            quoted = re.compile(rf"(?<![\w-]){re.escape(name)}\b")
        else:
            quoted = re.compile(rf"`(?:[\w./]*[./])?_*{re.escape(bare)}(?:\(\))?`")
        if not name.endswith("()") and bare in parts:
            yield 0, f"the name {path.name}", use
        for line, kind, defined in names:
            if kind in kinds and defined.lstrip("_") == bare:
                yield line, defined, use
        for match in quoted.finditer(text):
            yield line_of(text, match.start()), match[0], use


def find_british(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, word, American spelling) of each British spelling, and of «images a step» and the like."""
    for match in re.finditer(r"[A-Za-z]+?is(?:e[drs]?|ers|ing|able|ations?)(?![a-z])", text):
        word = re.sub(r".*[a-z](?=[A-Z])", "", match[0]).lower()  # the last word of CamelCase
        stem = re.sub(r"is(?:e[drs]?|ers|ing|able|ations?)$", "ise", word)
        if len(stem) > 4 and stem not in AMERICAN.split() and not stem.endswith(("wise", "raise")):
            yield line_of(text, match.start()), match[0], re.sub(r"is(?=[a-z]*$)", "iz", word)
    for match in re.finditer(r"[A-Za-z]+?our(?:s|ed|ing|ite|able|hood|less|al|ally)?(?![a-z])", text):
        word = re.sub(r".*[a-z](?=[A-Z])", "", match[0]).lower()
        if re.sub(r"(?<=our).*$", "", word) not in AMERICAN.split():
            yield line_of(text, match.start()), match[0], word.replace("our", "or")
    for stem, american in BRITISH.items():
        for match in re.finditer(rf"(?<![A-Za-z])(?:{stem})s?(?![A-Za-z])", text, re.IGNORECASE):
            yield line_of(text, match.start()), match[0], american
    for match in RATES.finditer(text):
        yield line_of(text, match.start()), " ".join(match[0].split()), f"per {match[1]}"


def searched(path: Path) -> str:
    """What is searched of a file: all of it, but for the glossary's own table."""
    text = path.read_text(encoding="utf-8")
    return text.split(HEADING, 1)[0] if path == GLOSSARY else text


def problems(path: Path, text: str, entries: list[Entry]) -> list[str]:
    return [
        f"{path}:{line}: {word!r} is retired; use {use}"
        for line, word, use in sorted({*find_retired(path, text, entries), *find_british(text)})
    ]


ENTRIES = read_entries(GLOSSARY.read_text(encoding="utf-8"))


def test_no_file_uses_a_retired_word() -> None:
    reports = [
        report
        for path in tracked_files()
        for report in problems(path.relative_to(ROOT), searched(path), ENTRIES)
    ]
    assert not reports, f"{len(reports)} retired words, see docs/glossary.md:\n" + "\n".join(reports)


def test_the_table_is_read_and_covers_what_it_must() -> None:
    assert len(ENTRIES) > 40
    assert not [entry for entry, *_ in ENTRIES if entry.count("`") not in (0, 2)]
    assert {"solved anew", "`Subject`", "`found`"} <= {entry.retired for entry in ENTRIES}
    files = {str(path.relative_to(ROOT)) for path in tracked_files()}
    assert {"README.md", "docs/glossary.md", "autoprune/config.py", "tests/test_layers.py"} <= files
    assert not [name for name in files if name.startswith(EXCEPT)]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.retired)
def test_a_planted_word_is_found(entry: Entry) -> None:
    name = entry.retired.strip("`")
    if name == entry.retired:
        first, *rest = name.split()
        planted = {
            f"a = 1\n# It is {name}.\n": 2,
            f"\n\nIt is {first.capitalize()}\n# {' '.join(rest)}": 3 if rest else 0,
        }
        path = Path("a.py")
    elif name.endswith(".py"):
        planted = {f"import os\nimport autoprune.space.{name[:-3]}\n": 2, f"\nsee `space/{name}` for it": 2}
        path = Path("docs/a.py")
    else:
        bare = name.removesuffix("()")
        planted = {f"x = 1\n\ndef {bare}():\n    pass\n": 3, f"\nclass _{bare.lstrip('_')}: pass\n": 2}
        if bare == name:
            planted |= {f"def f({name}=1): pass": 1, f"\nself.{name} = 3": 2, f"see `x.{name}` there": 1}
        path = Path("a.py")
    for text, line in planted.items():
        if line:
            assert any(
                report.startswith(f"{path}:{line}: ") and report.endswith(f"use {entry.use}")
                for report in problems(path, text, ENTRIES)
            ), text


def test_a_word_in_another_sense_is_not() -> None:
    entries = read_entries(
        f"{HEADING}\n\n| retired | use |\n|---|---|\n| `board` | status |\n| `end()`, `look()` | kill |\n"
        "| mend | fix |\n| `seeds.py` | `one_shot.py` |\n| solved anew | reconstructed |"
    )
    assert len(entries) == 6
    fine = (
        "from autoprune.space.one import seeds, start\nfrom board import x\n"
        "# The board of a boarding school has seeds and an end.\nend = start + 1\nwidget.end()\nlook = 3\n"
        "seeds = [1]\nrecommend = amend = 1\nkeyboard = print(end='')\nsolved = 'anew'\n"
    )
    assert problems(Path("a.py"), fine, entries) == []
    assert problems(Path("a/board.py"), "", entries) == [
        "a/board.py:0: 'the name board.py' is retired; use status"
    ]
    assert (
        len(
            problems(
                Path("a.py"), "def look(end): ...\nfrom a import end\nfrom autoprune.a import seeds", entries
            )
        )
        == 3
    )
    assert len(problems(Path("a.py"), "import autoprune.seeds.a\nMending = {}\n# seeds.py", entries)) == 3
    assert (
        len(problems(Path("a.md"), "It was solved\n> anew.\n`seeds.py` `board` `end()` `end`", entries)) == 4
    )
    with pytest.raises(ValueError, match="not two cells"):
        read_entries(f"{HEADING}\n| retired | use |\n|---|---|\n| one |")
    with pytest.raises(ValueError, match="no heading"):
        read_entries("nothing")


BRITISH_WORDS = """
normalise Normalisation optimisers initialised serialising recognisable NormalisedLayer colour neighbouring
behavioural favourite honours modelled labelling cancelled centre centred metres grey artefacts analysed
licence whilst fulfil images_a_step seconds_a_trial per_cent neighbours_of get_colour
"""
AMERICAN_WORDS = """
normalize precise otherwise raising denoise elementwise pairwise promised exercises noisy hours yours four
source course resource analyses analysis controlled called installed gray fulfilled cancellation percent
takes_a_step gives_a_second parameter diameter list basis rising RaisesGroup Noise unsupervised
"""


@pytest.mark.parametrize("word", BRITISH_WORDS.split())
def test_a_planted_british_spelling_is_found(word: str) -> None:
    (report,) = problems(Path("a.md"), f"x\n{word.replace('_', ' ')}!", [])
    assert report.startswith("a.md:2: ")
    assert "_a_" in word or problems(Path("a.py"), f"x_{word}_1 = 0", [])


@pytest.mark.parametrize("word", AMERICAN_WORDS.split())
def test_american_spelling_is_fine(word: str) -> None:
    assert problems(Path("a.md"), word.replace("_", " "), []) == []
