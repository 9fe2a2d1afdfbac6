"""Holds the table of `retired_words.md`: no tracked text file has a retired word, or a British spelling."""

from pathlib import Path

import pytest

from .language import EXCEPT, HEADING, PAGE, ROOT, Entry, problems, read_entries, searched, tracked_files

ENTRIES = read_entries(PAGE.read_text(encoding="utf-8"))


def test_no_file_uses_a_retired_word() -> None:
    reports = [
        report
        for path in tracked_files()
        for report in problems(path.relative_to(ROOT), searched(path), ENTRIES)
    ]
    assert not reports, f"{len(reports)} retired words, see tests/retired_words.md:\n" + "\n".join(reports)


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
