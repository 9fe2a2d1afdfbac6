"""Holds that `tests/` mirrors `autoprune/`: whoever opens a source file knows where its test is."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAST_LINES = 40

# Source files without a test file of their own, and where they are tested instead.
ELSEWHERE: dict[str, str] = {
    "data/detections.py": "data/test_evaluate.py",
    "graph/__init__.py": "graph/test_all_detectors.py",
    "search/checks.py": "search/test_pipeline_refusals.py",
    "runtimes/sessions.py": "contracts/test_runtimes.py",
}

SOURCES = sorted(
    path.relative_to(ROOT / "autoprune")
    for path in (ROOT / "autoprune").rglob("*.py")
    if len(path.read_text(encoding="utf-8").splitlines()) > LEAST_LINES
)


def mirror(source: Path) -> Path:
    name = (source.parent.name or "autoprune") if source.name == "__init__.py" else source.stem
    return ROOT / "tests" / source.parent / f"test_{name}.py"


@pytest.mark.parametrize("source", [str(source) for source in SOURCES])
def test_a_source_file_has_its_test_file(source: str) -> None:
    assert mirror(Path(source)).is_file() != (source in ELSEWHERE), (
        f"autoprune/{source} needs {mirror(Path(source)).relative_to(ROOT)}, or else a line in ELSEWHERE"
    )


def test_what_is_tested_elsewhere_is_there() -> None:
    for source, place in ELSEWHERE.items():
        assert (ROOT / "autoprune" / source).is_file(), source
        assert (ROOT / "tests" / place).is_file(), place
