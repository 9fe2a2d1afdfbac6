"""Holds the layers and the fences of the design: which file may import which, and who a library."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "autoprune"

LAYERS = (
    {"errors", "seeding", "unfinished", "progress", "process", "ranges", "resize", "run.names", "passwords"},
    {"files"},
    {"resize"},
    {"config", "fields", "trust", "validation"},
    {"cost.counts"},
    {"modules"},
    {"ops"},
    {"tracing"},
    {"graph"},
    {"policy"},
    {"cost.budget", "checkpoints"},
    {"vendors"},
    {"detectors"},
    {"images", "records"},
    {"layouts"},
    {"data"},
    {"training", "runtimes"},
    {"importance"},
    {"space"},
    {"latency"},
    {"task"},
    {"study"},
    {"run"},
    {"engines"},
    {"export"},
    {"recovery"},
    {"search"},
    {"report"},
    {"cli"},
    {"__main__"},
)

# Which files may import a library, at their top or inside functions.
FENCES = {
    "ray": {
        "engines.ray",
        "engines.ray_client",
        "engines.ray_map",
        "engines.ray_nodes",
        "engines.ray_token",
        "engines.ray_tune",
    },
    "optuna": {"study", "search", "engines"},
    "pycocotools": {"data"},
    "hotcoco": {"data"},
    "yaml": {"files"},
    "typer": {"cli"},
    "matplotlib": {"report", "data"},
    "jinja2": {"report"},
    "onnx": {"runtimes"},
    "onnxruntime": {"runtimes"},
    "openvino": {"runtimes"},
    # The package of a vendor belongs in the adapter of its detectors.
    "ultralytics": {"vendors.ultralytics_library"},
    "transformers": {
        "vendors.transformers",
        "vendors.transformers_families",
        "vendors.transformers_transform",
    },
    "libreyolo": {"vendors.libreyolo_files", "vendors.libreyolo_detector"},
    "timm": {"vendors.timm"},
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
MODULES = [name for name in FILES if name != "__init__"]


def within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def layer(module: str) -> int:
    """Index of ``module`` in `LAYERS`; a folder's `__init__` is as high as its highest file."""
    own = [rank for rank, names in enumerate(LAYERS) for name in names if within(module, name)]
    files = [rank for rank, names in enumerate(LAYERS) for name in names if within(name, module)]
    assert own or files, f"autoprune.{module} has no layer: give it a place in the design and in LAYERS"
    return min(own) if own else max(files)


@cache
def imports(module: str) -> frozenset[str]:
    """Full names of all that a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"autoprune.{module}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def home(name: str) -> str | None:
    """The file below autoprune that holds the imported ``name``."""
    parts = name.split(".")[1:]
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in FILES), None)


def may_import(module: str, imported: str) -> bool:
    """Whether ``imported`` lies in a lower layer, or in the folder and the layer of ``module``."""
    siblings = imported.split(".")[:-1] == module.split(".")[:-1] or within(imported, module.split(".")[0])
    return layer(imported) < layer(module) or (siblings and layer(imported) == layer(module))


def test_files_import_from_lower_layers_and_their_own_folder() -> None:
    upward = [
        f"autoprune.{module} imports {name}, which is not below it"
        for module in MODULES
        for name in sorted(imports(module))
        if within(name, "autoprune") and (imported := home(name)) and not may_import(module, imported)
    ]
    assert not upward, "\n".join(upward)


def test_libraries_stay_behind_their_fences() -> None:
    outside = [
        f"autoprune.{module} imports {name}, which belongs in {', '.join(sorted(allowed))}"
        for module in MODULES
        for name in sorted(imports(module))
        if (allowed := FENCES.get(name.split(".")[0])) and not any(within(module, place) for place in allowed)
    ]
    assert not outside, "\n".join(outside)


def test_every_file_has_a_layer() -> None:
    assert [layer(module) for module in MODULES]


def test_no_file_is_deeper_than_one_folder() -> None:
    assert not [name for name in FILES if name.count(".") > 1]


# Modules to import one after the other in one process, and what must not be imported by then.
LIGHT = {
    "command line": [
        ("autoprune.__main__", ["ray", "optuna", "torch", "numpy", "pydantic", "typer", "rich"]),
        ("autoprune", ["ray", "optuna", "torch"]),
        ("autoprune.space.warm_start", ["ray", "optuna", "torch"]),
        ("autoprune.cli.main", ["ray", "optuna", "torch"]),
        ("autoprune.engines.ray", ["torch"]),
    ],
    "report and search": [
        ("autoprune.report.html", ["ray", "torchvision"]),
        ("autoprune.search.pipeline", ["ray"]),
    ],
}


@pytest.mark.parametrize("process", LIGHT)
def test_importing_does_not_import_heavy_libraries(process: str) -> None:
    code = f"""
import importlib, sys
for module, heavy in {LIGHT[process]}:
    importlib.import_module(module)
    print(*(f"{{module}} imports {{name}}" for name in heavy if name in sys.modules), sep="\\n", end="")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
