"""What a user meets has its place in the documentation: exported files, exit codes, variables, spaces."""

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from autoprune.cli import main
from autoprune.cli.export import Format
from autoprune.config import Config
from autoprune.data.coco import open_data
from autoprune.detectors import load_dense
from autoprune.export import formats, pretrained
from autoprune.run import names as run_names
from autoprune.runtimes.onnx import write_raw_heads
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.vendors.table import TESTED

from .doc_commands import PAGES, ROOT, blocks


def test_every_exported_file_is_explained() -> None:
    table = (ROOT / "docs/export.md").read_text(encoding="utf-8").split("| format |")[1].split("\n\n")[0]
    files = [formats.WHOLE_ONNX, formats.RAW_HEADS_ONNX, formats.RAW_HEADS_PT2, formats.VENDOR_PT]
    files += [pretrained.CONFIG_FILE, pretrained.PREPROCESSOR_FILE, run_names.WEIGHTS_FILE]
    assert not [name for name in files if f"`{name}`" not in table]
    assert set(get_args(Format)) <= set(re.findall(r"^\| `(\w+)", table, re.MULTILINE))


def test_exit_codes_and_variables_are_explained() -> None:
    section = (ROOT / "docs/output-files.md").read_text(encoding="utf-8").split("## Exit codes")[1]
    codes = {0, *(getattr(main, name) for name in ("FAILURE", "USAGE_ERROR", "INTERRUPTED", "READER_GONE"))}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == codes
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "autoprune").rglob("*.py")]
    read = {name for text in sources for name in re.findall(r'"(AUTOPRUNE_[A-Z]+)"', text)}
    assert read
    assert set(re.findall(r"^\| `(AUTOPRUNE_\w+)`", section, re.MULTILINE)) == read


def test_defaults_in_the_text_are_those_of_the_settings() -> None:
    """Such as `--confirm` (4)."""
    shown = [
        (page.name, name, float(value))
        for page in PAGES
        for name, value in re.findall(r"`--([\w-]+)` \((\d[\d.]*)", page.read_text(encoding="utf-8"))
    ]
    assert len(shown) > 4
    for page, name, value in shown:
        assert Config.model_fields[name.replace("-", "_")].default == value, f"{page}: --{name}"


METHODS = {
    "uniform, Taylor's channels": "uniform, channels by Taylor",
    "torch-pruning, Taylor": "torch-pruning, global Taylor",
    "Group Fisher's order (our code)": "greedy Group Fisher",
    "one shot by our criterion": "greedy obs",
    "autoprune": "autoprune",
}
"""The README's columns, and the rows of `docs/benchmarks.md` that they are."""


def test_the_results_in_the_readme_are_those_of_the_benchmarks() -> None:
    """Each mAP of a method stands in the benchmark's row of that method, in the column of that budget."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Results\n")[1].split("\n## ")[0]
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    section = page.split("## Policies of all methods, with autoprune's recovery\n")[1].split("\n## ")[0]
    heads, _, *rows = cells(section)
    measured = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    (_, *methods), _, *lines = cells(readme)
    assert len(lines) == 3
    for budget, *maps in lines:
        for method, text in zip(methods, maps, strict=True):
            assert number(text) == number(measured[METHODS[method]][budget]), f"{method} at {budget}"


def cells(text: str) -> list[list[str]]:
    """The rows of the first table in a text."""
    (table, *_) = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def number(text: str) -> str:
    """The first number of a cell."""
    match = re.search(r"\d+\.\d+", text)
    assert match is not None, text
    return match[0]


def test_the_versions_of_other_libraries_are_those_that_were_tested() -> None:
    text = (ROOT / "docs/vendors.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"ested with (\w+) (\d+\.\d+)", " ".join(text.split())))
    assert {name.lower(): version for name, version in named.items()} == TESTED


def test_extras_are_added_to_the_installed_autoprune_in_one_wording() -> None:
    """`pip` takes what is installed for its name; with a flag to reinstall it looks elsewhere."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.compile(r"([^`\"(]*)'((?:autoprune|\.)\[([a-z,]+)\])'")
    for file in [*(ROOT / "autoprune").rglob("*.py"), *PAGES]:
        for before, argument, names in named.findall(file.read_text(encoding="utf-8")):
            extra, *more = names.split(",")
            assert {extra, *more} <= set(extras), f"{file}: {argument}"
            if extra not in ("dev", "bench"):  # these need the files of the checkout
                words = before.split("\n")[-1].split()[-2:]
                assert (words, argument) == (["pip", "install"], f"autoprune[{extra}]"), f"{file}: {argument}"


def test_what_replaces_a_retired_name_exists() -> None:
    table = (ROOT / "tests/retired_words.md").read_text(encoding="utf-8")
    names = {
        name for use in re.findall(r"\| ([^|]*) \|$", table, re.M) for name in re.findall(r"`(\w+)", use)
    }
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "autoprune").rglob("*.py")}
    written = {word for text in sources.values() for word in re.findall(r"\w+", text)} | {*sources}
    assert len(names) > 20
    assert not names - written


def test_every_ready_space_is_named() -> None:
    text = (ROOT / "docs/search.md").read_text(encoding="utf-8")
    ready = [path.stem for path in (ROOT / "search_spaces").glob("*.yaml")]
    assert ready
    assert not [name for name in ready if f"`{name}`" not in text]


def test_the_example_that_decodes_raw_heads_gives_the_detections_of_the_detector(
    demo_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    detector, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    photo = Image.open(open_data(demo_settings["data"], "val").files[0])
    small, photo = photo, photo.resize((2 * photo.width, 2 * photo.height))
    (tmp_path / "heads").mkdir()
    write_raw_heads(RawHeads(detector, small.size[::-1]), tmp_path / "heads/raw_heads.onnx")
    photo.save(tmp_path / "photo.jpg", "PNG")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "docs/export.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example.text, "export.md", "exec"), names)
    pixels = np.asarray(photo.resize(small.size, Image.Resampling.BILINEAR), np.float32) / 255
    with torch.inference_mode():
        (expected,) = detector([torch.from_numpy(pixels).permute(2, 0, 1)])
    sure = expected["scores"] > 0.3
    assert sure.any()
    scores = names["detections"].scores
    assert np.allclose(scores[scores > 0.3], expected["scores"][sure], atol=1e-3)
    assert np.allclose(names["boxes"][scores > 0.3], 2 * expected["boxes"][sure], atol=0.5)
