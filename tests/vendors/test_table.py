"""Tests of how the module of a library is looked up, and of what a name of its detectors stands for."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from autoprune import detectors, trust
from autoprune.config import make_config
from autoprune.errors import ModelError
from autoprune.fields import VENDORS, ModelSpec, is_vendor
from autoprune.vendors import libraries, vendor_of
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


def test_a_broken_installation_says_what_is_missing(tmp_path, monkeypatch):
    (tmp_path / "timm.py").write_text("import libgl_of_nobody\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("timm", "autoprune.vendors.timm"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ModelError, match=r"not installed \(No module named 'libgl_of_nobody'\); pip"):
        vendor_of("timm:resnet18")


@pytest.mark.parametrize("library", VENDORS)
@pytest.mark.parametrize("code", ["from torch import nobody\n", "import torch\ntorch.nobody\n"])
def test_another_version_is_told_from_the_tested_one(library, code, tmp_path, monkeypatch):
    """A library whose names are elsewhere; its own module fails to import."""
    for module in [each for each in sys.modules if within(each, (library, f"autoprune.vendors.{library}"))]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / f"{library}.py").write_text(code)
    information = tmp_path / f"{library}-99.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: 99.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError) as error:
        vendor_of(f"{library}:x")
    message = str(error.value)
    assert f"model {library}:x: {library} 99.1 has another API than {TESTED[library]}" in message
    assert "nobody" in message
    assert message.endswith(f"pip install '{library}=={TESTED[library]}.*'")


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
