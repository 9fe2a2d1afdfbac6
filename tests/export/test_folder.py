import copy
import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import autoprune
from autoprune import progress
from autoprune.data.coco import open_data
from autoprune.detectors import detector_inputs, load_dense
from autoprune.errors import ModelError, PolicyError
from autoprune.export import folder as module
from autoprune.export import load, save_detector
from autoprune.export.folder import largest_difference, load_with_policy
from autoprune.graph import analyze, prune
from autoprune.policy import Policy, hash_weights

SIZE = (128, 128)


@pytest.fixture(scope="module")
def saved(demo_settings, tmp_path_factory):
    """A pruned detector, untrained, saved; with the detector itself and its policy."""
    settings = demo_settings
    dense, spec = load_dense(settings["model"], settings["model_arguments"], weights=settings["weights"])
    graph = analyze(dense, detector_inputs(SIZE))
    keep = {name: tuple(range(4, group.width)) for name, group in list(graph.prunable.items())[-3:]}
    policy = Policy(
        model=spec,
        weights_sha256=hash_weights(dense.state_dict()),
        criterion="l2",
        input_size=SIZE,
        widths={name: graph.groups[name].width for name in keep},
        keep=keep,
        metrics={"map": 0.5},
    )
    pruned = prune(dense, graph, keep)
    folder = tmp_path_factory.mktemp("exported") / "trial-0001"
    save_detector(folder, pruned, policy)
    return folder, pruned, policy


def test_a_loaded_detector_gives_identical_outputs(saved, demo_settings):
    folder, pruned, policy = saved
    loaded = autoprune.load(folder)
    assert not loaded.training
    images, _ = open_data(demo_settings["data"], "val").batch([0, 1])
    with torch.no_grad():
        expected, detections = pruned.eval()(images)[0], loaded(images)[0]
    assert len(expected["boxes"]) > 0
    assert all(torch.equal(expected[name], detections[name]) for name in expected)
    assert Policy.load(folder / "policy.yaml") == policy


def test_a_detector_without_whole_blocks_is_saved_and_loaded(saved, demo_settings, tmp_path):
    _, _, policy = saved
    dense, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    graph = analyze(dense, detector_inputs(SIZE))
    keep = {**policy.keep, **dict.fromkeys(graph.emptiable[1:], ())}
    widths = {name: graph.groups[name].width for name in keep}
    emptied = replace(policy, keep=keep, widths=widths)
    pruned = emptied.apply(dense, graph).eval()
    assert sum(p.numel() for p in pruned.parameters()) == round(graph.mparams(emptied.kept_widths) * 1e6)
    with torch.no_grad():
        for parameter in pruned.parameters():  # as a recovery does, constants included
            parameter += 0.01 * torch.randn(parameter.shape)
    save_detector(tmp_path, pruned, emptied)
    loaded, read = load_with_policy(tmp_path)
    assert dict(read.keep) == keep
    assert largest_difference(pruned, loaded, SIZE) == 0


def test_an_architecture_is_analyzed_once_in_a_row_and_another_one_again(saved, tmp_path, monkeypatch):
    folder, pruned, policy = saved
    analyzed = []
    monkeypatch.setattr(module, "_last_graph", {})
    monkeypatch.setattr(module, "analyze", lambda *given: analyzed.append(given) or analyze(*given))
    save_detector(tmp_path / "other_size", pruned, replace(policy, input_size=(128, 96)))
    for loaded, times in ((folder, 1), (folder, 1), (tmp_path / "other_size", 2), (folder, 3)):
        assert largest_difference(load(loaded), pruned, SIZE) == 0
        assert len(analyzed) == times


class Returns(torch.nn.Module):
    """A detector whose children return what they are given."""

    def __init__(self, *values):
        super().__init__()
        for number, value in enumerate(values):
            self.add_module(str(number), Constant(value))

    def forward(self, images):
        return [child(images) for child in self.children()]


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.tensor([1.0, value])

    def forward(self, images):
        return self.value


@pytest.mark.parametrize(
    ("values", "others", "difference"),
    [
        ((0.5, 2.0), (0.5, 2.0), 0.0),
        ((0.5, 2.0), (0.25, 2.0), 0.25),
        ((0.5, math.nan), (0.5, 2.0), math.inf),
        ((math.nan, 2.0), (0.5, 2.0), math.inf),
        ((0.5, math.nan), (0.5, math.nan), 0.0),
        ((-math.inf, 2.0), (-math.inf, 1.5), 0.5),
        ((-math.inf, 2.0), (0.0, 2.0), math.inf),
    ],
)
def test_numbers_that_are_not_finite_are_differences_where_only_one_has_them(values, others, difference):
    assert largest_difference(Returns(*values), Returns(*others), SIZE) == difference


def test_loading_takes_torch_and_little_else(saved):
    """In a process of its own: the packages that `load` needs besides torch and torchvision."""
    folder, _, _ = saved
    code = """
import sys, json, torch, torchvision
before = set(sys.modules)
import autoprune
model = autoprune.load(sys.argv[1])
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
"""
    root = Path(autoprune.__file__).parent.parent
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    needed = {"autoprune", "torch", "numpy", "safetensors", "pydantic", "pydantic_core", "yaml"}
    of_pydantic = {"annotated_types", "typing_inspection", "typing_extensions"}
    imported = {name for name in json.loads(done.stdout) if not name.startswith("_")}
    assert imported <= needed | of_pydantic


def test_a_folder_without_a_detector_is_refused(saved, tmp_path):
    folder, _, _ = saved
    with pytest.raises(PolicyError, match=r"holds no policy\.yaml"):
        load(tmp_path)
    (tmp_path / "policy.yaml").write_text((folder / "policy.yaml").read_text())
    with pytest.raises(PolicyError, match=r"holds no model\.safetensors"):
        load(tmp_path)


def test_weights_that_are_not_finite_are_refused_by_name(saved, tmp_path):
    _, pruned, policy = saved
    broken = copy.deepcopy(pruned)
    broken.backbone.body.conv1.weight.data[0] = torch.nan
    save_detector(tmp_path, broken, policy)
    with pytest.raises(ModelError, match=r"model\.safetensors: `backbone\.body\.conv1\.weight` holds NaN"):
        load(tmp_path)


def test_weights_of_another_policy_are_refused(saved, demo_settings, tmp_path):
    folder, _, _policy = saved
    (tmp_path / "policy.yaml").write_text((folder / "policy.yaml").read_text())
    (tmp_path / "model.safetensors").write_bytes(Path(demo_settings["weights"]).read_bytes())
    with pytest.raises(ModelError, match=r"keys differ: .* take both files from one folder"):
        load(tmp_path)


def test_the_class_names_are_those_that_weights_from_elsewhere_carry(saved, tmp_path):
    _, pruned, policy = saved
    old, new = dict(enumerate("abcde", 1)), dict(enumerate("vwxyz", 1))
    stored = replace(policy, labels=old)
    save_detector(tmp_path / "stored", pruned, stored)
    save_detector(tmp_path / "tuned", pruned, replace(policy, labels=new))
    file = tmp_path / "tuned.pt"
    for names, labels in (
        (list(new.values()), new),
        (dict(enumerate(new.values())), new),
        ([name.upper() for name in old.values()], old),
        (list("01234"), old),  # what a library calls classes without names
        (None, old),
    ):
        torch.save({"model": pruned.state_dict(), **({} if names is None else {"names": names})}, file)
        lines = io.StringIO()
        with progress.show(Console(file=lines, width=300)):
            assert load_with_policy(tmp_path / "stored", file)[1].labels == labels
        said = f"labels: 1 v, 2 w, 3 x, 4 y, 5 z, as {file} names them; "
        said += "the policy is of 1 a, 2 b, 3 c, 4 d, 5 e\n"
        assert lines.getvalue() == ("" if labels is old else said)
    tuned = tmp_path / "tuned"
    for place in (tuned, tuned / "model.safetensors"):
        assert load_with_policy(tmp_path / "stored", place)[1].labels == new
    assert load_with_policy(tmp_path / "stored")[1].labels == old


def test_weights_that_were_trained_on_elsewhere_take_the_place_of_the_folders(saved, demo_settings, tmp_path):
    folder, pruned, _ = saved
    tuned = copy.deepcopy(pruned).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.01 * torch.randn(parameter.shape)
    file = tmp_path / "tuned.pt"
    torch.save({"epoch": 3, "ema": pruned.state_dict(), "model": tuned.state_dict()}, file)
    loaded, policy = load_with_policy(folder, file, "model")
    assert largest_difference(tuned, loaded, SIZE) == 0
    assert set(policy.metrics) == {"gflops", "mparams"}  # the mAP is of the folder's own weights
    assert largest_difference(tuned, autoprune.load(folder, file), SIZE) == 0
    assert largest_difference(pruned, load_with_policy(folder, file, "ema")[0], SIZE) == 0
    assert largest_difference(pruned, load(folder, folder), SIZE) == 0
    with pytest.raises(ModelError, match=r"keys differ: .* give weights of this pruned detector; with dense"):
        load(folder, demo_settings["weights"])
    with pytest.raises(ModelError, match=r"holds no model\.safetensors; give the file that"):
        load(folder, tmp_path)
    with pytest.raises(PolicyError, match=r"holds no policy\.yaml"):
        load(tmp_path, file)
