"""Tests of how the module of a library is looked up, and of what a name of its detectors stands for."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from autoprune import detectors, trust
from autoprune.config import make_config
from autoprune.detectors.class_names import class_names
from autoprune.errors import ModelError
from autoprune.fields import VENDORS, ModelSpec, is_vendor
from autoprune.vendors import libraries, table, vendor_of
from autoprune.vendors.table import TESTED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("library", VENDORS)
def test_a_library_that_is_not_installed_names_its_extra(library, monkeypatch):
    for module in [name for name in sys.modules if name.startswith(f"autoprune.vendors.{library}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    for call in (
        lambda: vendor_of(f"{library}:x"),
        lambda: detectors.load_dense(f"{library}:x"),
        lambda: detectors.build(ModelSpec(name=f"{library}:x", num_classes=3)),
    ):
        with pytest.raises(ModelError) as error:
            call()
        expected = f"model {library}:x: {library} is not installed; pip install 'autoprune[{library}]'"
        assert str(error.value) == expected


BROKEN = {
    "import libgl_of_nobody": "ModuleNotFoundError: No module named 'libgl_of_nobody'",
    "raise ImportError('libGL.so.1: cannot open shared object file')": "ImportError: libGL.so.1: cannot open",
    "raise RuntimeError('driver is\\nbroken')": "RuntimeError: driver is broken",
    "raise OSError('x.so: undefined symbol: _ZN')": "OSError: x.so: undefined symbol: _ZN",
    "raise ValueError('numpy.dtype size changed')": "ValueError: numpy.dtype size changed",
    "raise SystemExit(3)": "SystemExit: 3",
    "def": "SyntaxError: ",
    "import torch; torch.nobody": "AttributeError: module 'torch' has no attribute 'nobody'",
    "try: import cv_of_nobody\nexcept ImportError as e: raise RuntimeError('a part') from e": "cv_of_nobody",
}
"""What importing a library may raise, with the cause that is shown."""


@pytest.mark.parametrize("library", VENDORS)
@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_installation_says_what_is_wrong(library, code, tmp_path, monkeypatch):
    stand_in(library, code, tmp_path, monkeypatch)
    with pytest.raises(ModelError) as error:
        vendor_of(f"{library}:x")
    message = str(error.value)
    assert f"model {library}:x: {library} 99.1 can't be imported (" in message
    assert BROKEN[code] in message
    assert message.endswith(f"reinstall it: pip install --force-reinstall {library}")
    assert "\n" not in message


@pytest.mark.parametrize("library", VENDORS)
@pytest.mark.parametrize("code", ["", "__version__ = '99.1'"])
def test_another_version_is_told_from_the_tested_one(library, code, tmp_path, monkeypatch):
    """A library whose names are elsewhere."""
    stand_in(library, code, tmp_path, monkeypatch)
    with pytest.raises(ModelError) as error:
        vendor_of(f"{library}:x")
    message = str(error.value)
    assert f"model {library}:x: {library} 99.1 has another API than {TESTED[library]}" in message
    assert message.endswith(f"pip install '{library}=={TESTED[library]}.*'")


def stand_in(library, code, folder, monkeypatch):
    """A library of one module, version 99.1, that holds ``code``."""
    for module in [each for each in sys.modules if within(each, (library, f"autoprune.vendors.{library}"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)  # so that the stand-in goes with the test
    monkeypatch.delitem(sys.modules, library)
    (folder / f"{library}.py").write_text(f"{code}\n")
    information = folder / f"{library}-99.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: 99.1\n")
    monkeypatch.syspath_prepend(folder)


class Raises:
    """A vendor whose library fails on what a file holds."""

    def __init__(self, error):
        self.error = error

    def describe(self, source, arguments):
        raise self.error


@pytest.mark.parametrize("error", [IndexError("list index\nout of range"), SystemExit(3), KeyError("n")])
def test_what_a_library_raises_on_a_file_is_one_line_that_names_it(error, monkeypatch):
    monkeypatch.setattr(table, "vendor_of", lambda name: (Raises(error), name.partition(":")[2]))
    calls = (
        lambda: detectors.load_dense("timm:some/file.pt", {"imgsz": 3}),
        lambda: detectors.build(ModelSpec(name="timm:some/file.pt", arguments={"imgsz": 3}, num_classes=3)),
        lambda: class_names(None, "timm:some/file.pt", 3, {"imgsz": 3}),
    )
    for call in calls:
        with pytest.raises(ModelError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(f"model timm:some/file.pt can't be made: {type(error).__name__}: ")
        assert message.endswith("; check some/file.pt and model_arguments imgsz")
        assert "\n" not in message
    monkeypatch.setattr(table, "vendor_of", lambda name: (Raises(ModelError("as it is")), ""))
    with pytest.raises(ModelError, match=r"^as it is$"):
        table.described("timm:x", {})


def within(module, parents):
    return any(module == parent or module.startswith((f"{parent}.", f"{parent}_")) for parent in parents)


def test_the_tested_versions_are_those_of_the_docs():
    text = " ".join((ROOT / "docs/vendors.md").read_text().lower().split())
    for library, version in TESTED.items():
        assert re.search(rf"tested with {library} {re.escape(version)}\b", text), library


@pytest.mark.parametrize("library", VENDORS)
def test_a_name_without_a_source_shows_one(library):
    with pytest.raises(ModelError) as error:
        vendor_of(f"{library}:")
    assert str(error.value) == f"model '{library}:' names no detector; give one such as {VENDORS[library]}"


def test_the_list_says_what_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else object())
    by_name = {each.library: each for each in libraries()}
    assert by_name.keys() == VENDORS.keys()
    assert [name for name, each in by_name.items() if not each.installed] == ["timm"]
    for name, each in by_name.items():
        assert each.install == f"pip install 'autoprune[{name}]'"
        assert is_vendor(each.example)
        assert each.example.startswith(f"{name}:")


@pytest.mark.parametrize("name", VENDORS.values())
def test_a_file_may_name_a_librarys_detector_but_no_code(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.setattr(trust, "_files", {})
    monkeypatch.setattr(trust, "_consented", set())
    trust.note_file(name, tmp_path / "policy.yaml")
    trust.require_consent(name)
    code = f"my_{name}"
    trust.note_file(code, tmp_path / "policy.yaml")
    with pytest.raises(ModelError, match="code that you have not used here before"):
        trust.require_consent(code)


def test_a_source_with_weights_is_where_the_weights_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("best.pt", "best.yaml", "folder/model.safetensors", "empty/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = {
        "ultralytics:best.pt": "best.pt",
        f"libreyolo:{tmp_path}/best.pt": f"{tmp_path}/best.pt",
        "transformers:folder": "folder",
        "ultralytics:best.yaml": None,
        "transformers:empty": None,
        "libreyolo:yolox-s": None,
        "my_package:best.pt": None,
        "best.pt": None,
    }
    assert {name: make_config(model=name).weights for name in expected} == expected
    assert make_config(model="ultralytics:best.pt", weights="other.pt").weights == "other.pt"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("ultralitics:yolo11n.yaml", "ultralytics:yolo11n.yaml"), ("Tim:resnet18", "timm:resnet18")],
)
def test_a_misspelled_library_is_answered_with_the_nearest(name, meant, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as error:
        detectors.load_dense(name)
    assert f"there is no module {name.partition(':')[0]!r}; did you mean {meant}?" in str(error.value)


def test_a_library_alone_is_answered_with_a_name():
    with pytest.raises(ModelError, match=f"did you mean {VENDORS['timm']}"):
        detectors.load_dense("timm")
