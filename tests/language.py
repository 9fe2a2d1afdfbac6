"""Finds the words of `retired_words.md`, and British spellings, in the tracked text files.

Its table has one row per entry, `| retired | use |`; a cell may list several retired
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
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "tests/retired_words.md"
HEADING = "# Retired words"
FOLDERS = ("autoprune", "scripts", "tests", "docs", "search_spaces", ".ci")
# These files quote what they look for. What an earlier version wrote stays as it was.
EXCEPT = ("tests/language.py", "tests/test_language.py", "tests/earlier_version/", "CHANGELOG.md")

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
    "per[ _]cent": "percent",
    "programme": "program",
    "sceptic(?:al|ism)?": "skeptic",
    "skilful": "skillful",
    "whilst": "while",
}


def whole_word(stem: str) -> str:
    """The pattern of a stem of `BRITISH`, alone or with an -s."""
    return rf"(?<![A-Za-z])(?:{stem})s?(?![A-Za-z])"


ANY_BRITISH = re.compile(whole_word("|".join(BRITISH)), re.IGNORECASE)
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
    names: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for line, kind, defined in names_of(path, text):
        names[defined.lstrip("_")].append((line, kind, defined))
    parts = {part.removesuffix(path.suffix) for part in path.parts}
    folded = text.casefold()
    for retired, use in entries:
        if not retired.startswith("`"):
            # A search for the words costs a fiftieth of one for the pattern, which most files do not need.
            if all(word in folded for word in retired.casefold().split()):
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
        for line, kind, defined in names[bare]:
            if kind in kinds:
                yield line, defined, use
        for match in quoted.finditer(text) if bare in text else ():
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
    # One search for all stems, and one each where that finds something.
    for stem, american in BRITISH.items() if ANY_BRITISH.search(text) else ():
        for match in re.finditer(whole_word(stem), text, re.IGNORECASE):
            yield line_of(text, match.start()), match[0], american
    for match in RATES.finditer(text):
        yield line_of(text, match.start()), " ".join(match[0].split()), f"per {match[1]}"


def searched(path: Path) -> str:
    """What is searched of a file: all of it, but for the table itself."""
    text = path.read_text(encoding="utf-8")
    return text.split(HEADING, 1)[0] if path == PAGE else text


def problems(path: Path, text: str, entries: list[Entry]) -> list[str]:
    return [
        f"{path}:{line}: {word!r} is retired; use {use}"
        for line, word, use in sorted({*find_retired(path, text, entries), *find_british(text)})
    ]
