"""Holds the layers and the fences of the design: who may import whom, and what from outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "autoprune"

LAYERS = (
    {"errors", "seeding", "files", "progress", "config", "fields", "validation", "streams", "ranges"},
    {"cost.counts"},
    {"graph"},
    {"policy"},
    {"cost.budget", "detectors"},
    {"data", "importance"},
    {"training", "runtimes"},
    {"space"},
    {"task"},
    {"latency"},
    {"study"},
    {"run"},
    {"engines"},
    {"export"},
    {"recovery"},
    {"search"},
    {"report"},
    {"cli"},
)
FENCES = {
    "ray": {"engines.ray", "engines.ray_client", "engines.ray_nodes"},
    "optuna": {"study", "search", "engines"},
    "pycocotools": {"data"},
    "yaml": {"files"},
    "typer": {"cli"},
    "matplotlib": {"report", "data"},
    "jinja2": {"report"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def layer(module: str) -> int:
    """Place of ``module`` in `LAYERS`; a folder's `__init__` is as high as its highest file."""
    found = [rank for rank, names in enumerate(LAYERS) for name in names if within(module, name)]
    folder = [rank for rank, names in enumerate(LAYERS) for name in names if within(name, module)]
    assert found or folder, f"autoprune.{module} has no layer: give it a place in the design and in LAYERS"
    return (found or sorted(folder, reverse=True))[0]


def imports(path: Path) -> set[str]:
    """Full names of all modules that the file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def home(name: str) -> str | None:
    """The file below autoprune that holds the imported ``name``."""
    parts = name.split(".")[1:]
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in FILES), None)


@pytest.mark.parametrize("module", [name for name in FILES if name != "__init__"])
def test_a_file_imports_from_lower_layers_and_its_own_folder(module: str) -> None:
    for name in imports(FILES[module]):
        if name.split(".")[0] == "autoprune" and (imported := home(name)) is not None:
            same_folder = imported.split(".")[:-1] == module.split(".")[:-1] or within(
                imported, module.split(".")[0]
            )
            below = layer(imported) < layer(module)
            assert below or (same_folder and layer(imported) == layer(module)), (
                f"autoprune.{module} imports {name}, which is not below it"
            )


@pytest.mark.parametrize("module", [name for name in FILES if name != "__init__"])
def test_libraries_stay_behind_their_fences(module: str) -> None:
    for name in imports(FILES[module]):
        allowed = FENCES.get(name.split(".")[0])
        assert allowed is None or any(within(module, place) for place in allowed), (
            f"autoprune.{module} imports {name}, which belongs in {sorted(allowed or ())}"
        )


def test_no_file_is_deeper_than_one_folder() -> None:
    assert not [name for name in FILES if name.count(".") > 1]


HEAVY = {
    "autoprune": ["ray", "optuna", "torch"],
    "autoprune.engines.ray": ["torch"],
    "autoprune.search.pipeline": ["ray"],
    "autoprune.cli.main": ["ray", "optuna", "torch"],
    "autoprune.report.html": ["ray", "torchvision"],
}


@pytest.mark.parametrize("what", HEAVY)
def test_importing_leaves_heavy_libraries_alone(what: str) -> None:
    heavy = HEAVY[what]
    code = f"import sys, {what}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
