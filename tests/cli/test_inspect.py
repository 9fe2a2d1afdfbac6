"""`autoprune inspect` shows what torch itself counts, what is frozen, and what a policy makes of it."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights, retinanet_resnet50_fpn

from autoprune.cli.main import main
from autoprune.detectors import Resize, build, detector_inputs, names
from autoprune.graph import ChannelGraph, analyze, prune
from autoprune.policy import Policy

from .conftest import TINY

Run = Callable[..., Any]


def flops(model: torch.nn.Module, size: tuple[int, int]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(*detector_inputs(size))
    return counter.get_total_flops() // 2


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """The tiny detector, to read."""
    return build(TINY)


@pytest.fixture(scope="module")
def graph(model: torch.nn.Module) -> ChannelGraph:
    """Its channels."""
    return analyze(model, detector_inputs((64, 64)))


@pytest.fixture
def policy(tmp_path: Path, graph: ChannelGraph) -> Path:
    names = ["backbone.body.layer1.0.conv1", "head.classification_head.conv.0.0"]
    keep = {name: tuple(range(16)) for name in names}
    widths = {name: graph.groups[name].width for name in names}
    path = tmp_path / "policy.yaml"
    Policy(TINY, "0" * 64, "l2", (64, 64), widths, keep).save(path)
    return path


def test_totals_are_those_of_torch(autoprune: Run, tiny_model: list[str], model: torch.nn.Module) -> None:
    report = json.loads(autoprune("inspect", *tiny_model, "--num-classes", "6", "--json").out)
    assert report["input_size"] == [64, 64]
    assert report["gflops"] == flops(model, (64, 64)) / 1e9
    assert report["mparams"] == sum(p.numel() for p in model.parameters()) / 1e6


def test_a_ready_space_of_the_detector_is_named(autoprune: Run, tiny_model: list[str]) -> None:
    ready = Path(__file__).parents[2] / "search_spaces" / "retinanet_resnet18_fpn.yaml"
    assert str(ready) in autoprune("inspect", *tiny_model).out
    assert json.loads(autoprune("inspect", *tiny_model, "--json").out)["ready_space"] == str(ready)


@pytest.mark.parametrize("size", ["64x64", "50x64"])
def test_the_size_that_the_network_sees_is_said_where_it_is_another(
    autoprune: Run, tiny_model: list[str], size: str
) -> None:
    given = ["inspect", *tiny_model, "--num-classes", "6", "--input-size", size]
    model, seen = build(TINY).eval(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].shape[-2:]))
    height, width = map(int, size.split("x"))
    with torch.no_grad():
        model(*detector_inputs((height, width)))
    assert json.loads(autoprune(*given, "--json").out)["network_size"] == seen
    line = autoprune(*given).out.splitlines()[0]
    other = "" if seen == [height, width] else ", which the detector itself makes {}x{}".format(*seen)
    assert line.endswith(f"counted at {size}{other}")
    assert ("itself" in line) == (size == "50x64")


def test_members_are_the_axes_that_shrink(
    autoprune: Run, tiny_model: list[str], model: torch.nn.Module, graph: ChannelGraph
) -> None:
    report = json.loads(autoprune("inspect", *tiny_model, "--num-classes", "6", "--json").out)
    name = "backbone.body.layer1.0.conv1"
    pruned = prune(model, graph, keep={name: range(32)}).state_dict()
    shrunk = {
        (tensor, axis)
        for tensor, dense in model.state_dict().items()
        for axis in range(dense.dim())
        if pruned[tensor].shape[axis] < dense.shape[axis]
    }
    members = next(group["members"] for group in report["groups"] if group["name"] == name)
    assert {(member["tensor"], member["axis"]) for member in members} == shrunk
    assert {member["role"] for member in members} == {"producer", "norm", "consumer"}
    assert all(member["channels"] == 64 for member in members)


def test_the_fraction_of_a_group_is_what_goes_with_it(
    autoprune: Run, tiny_model: list[str], model: torch.nn.Module, graph: ChannelGraph
) -> None:
    report = json.loads(autoprune("inspect", *tiny_model, "--num-classes", "6", "--json").out)
    name = "backbone.body.layer1.0.conv1"
    # cost is linear in this group's width, so removing half of it removes half of its fraction
    pruned = prune(model, graph, keep={name: range(32)})
    expected = 2 * (1 - flops(pruned, (64, 64)) / flops(model, (64, 64)))
    fraction = next(group["gflops_share"] for group in report["groups"] if group["name"] == name)
    assert fraction == pytest.approx(expected)
    assert sum(group["gflops_share"] or 0 for group in report["groups"]) > 1
    assert "more than 100%" in " ".join(autoprune("inspect", *tiny_model).out.split())


def test_default_is_retinanet_r50_at_its_own_size(autoprune: Run) -> None:
    outcome = autoprune("inspect")
    assert "retinanet_resnet50_fpn, 91 classes" in outcome.out
    torchvisions = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta
    assert torchvisions["_ops"] == 151.54
    assert "151.54 GFLOPs" in outcome.out
    with torch.device("meta"):
        parameters = sum(p.numel() for p in retinanet_resnet50_fpn(weights_backbone=None).parameters())
    assert f"{parameters / 1e6:.2f} M parameters" in outcome.out
    assert "cls_logits" in outcome.out.split("are frozen:")[1]


@pytest.mark.parametrize("width", ["80", None])
def test_names_are_whole_on_80_columns_and_in_a_pipe(
    autoprune: Run,
    tiny_model: list[str],
    graph: ChannelGraph,
    width: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if width:
        monkeypatch.setenv("COLUMNS", width)
    text = autoprune("inspect", *tiny_model).out
    assert "…" not in text
    for name in graph.groups:
        assert name in text
    if width:
        lines = [line for line in text.splitlines() if "search_spaces" not in line]  # a path stays whole
        assert max(map(len, lines)) <= int(width)


@pytest.mark.parametrize("how", ["argument", "option", "folder"])
def test_a_policy_shows_before_and_after(
    autoprune: Run,
    tiny_model: list[str],
    model: torch.nn.Module,
    graph: ChannelGraph,
    policy: Path,
    how: str,
) -> None:
    arguments: dict[str, list[object]] = {
        "argument": [policy],
        "folder": [policy.parent],
        "option": [*tiny_model, "--num-classes", "6", "--policy", policy],
    }
    report = json.loads(autoprune("inspect", *arguments[how], "--json").out)
    pruned = prune(model, graph, Policy.load(policy).keep)
    assert report["pruned"]["gflops"] == flops(pruned, (64, 64)) / 1e9
    assert report["pruned"]["mparams"] == sum(p.numel() for p in pruned.parameters()) / 1e6
    kept = {group["name"]: group["kept"] for group in report["groups"]}
    assert kept["backbone.body.layer1.0.conv1"] == 16
    assert kept["backbone.body.layer1.1.conv1"] == 64
    shown = autoprune("inspect", *arguments[how]).out
    assert f"{report['gflops']:.2f} → {report['pruned']['gflops']:.2f} (" in shown


@pytest.mark.parametrize("given", [[], ["--input-size", "64x64"]])
def test_a_policy_at_a_smaller_size_is_compared_with_the_dense_detector_at_its_own(
    autoprune: Run, model: torch.nn.Module, graph: ChannelGraph, policy: Path, given: list[str]
) -> None:
    own = Policy.load(policy)
    smaller = replace(own, input_size=(32, 32), resize=Resize(32, 32))
    smaller.save(policy)
    report = json.loads(autoprune("inspect", policy, *given, "--json").out)
    small = prune(smaller.resized(model), graph, own.keep)
    assert (report["network_size"], report["pruned"]["network_size"]) == ([64, 64], [32, 32])
    assert report["gflops"] == flops(model, (64, 64)) / 1e9
    assert report["pruned"]["gflops"] == flops(small, (32, 32)) / 1e9
    shown = autoprune("inspect", policy, *given).out
    image = "64x64, which the detector itself makes 32x32" if given else "32x32"
    assert shown.splitlines()[0].endswith(f"counted at 64x64, pruned at {image}")
    assert f"({report['pruned']['gflops'] / report['gflops']:.0%}) GFLOPs" in shown


def test_a_space_to_search_is_not_offered_for_what_is_pruned(
    autoprune: Run, tiny_model: list[str], policy: Path
) -> None:
    assert "a search space" in autoprune("inspect", *tiny_model).out
    assert "a search space" not in autoprune("inspect", policy).out


def test_a_policy_of_another_model_is_refused(autoprune: Run, policy: Path) -> None:
    outcome = autoprune("inspect", "fcos_resnet18_fpn", "--policy", policy)
    assert outcome.is_refusal("the policy is for another model", TINY.name, f"`autoprune inspect {policy}`")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num-classes", "4"], "num_classes of {policy} is 6, not 4"),
        (["--model-arguments", "{}"], "model_arguments of {policy} is {arguments}, not {{}}"),
    ],
)
def test_a_policy_of_another_architecture_is_not_taken_for_an_edited_one(
    autoprune: Run, policy: Path, flags: list[str], said: str
) -> None:
    outcome = autoprune("inspect", TINY.name, "--policy", policy, *flags)
    assert outcome.is_refusal(said.format(policy=policy, arguments=TINY.arguments), "autoprune inspect")


def test_what_is_not_given_beside_a_policy_is_the_policys(
    autoprune: Run, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(policy.parent)
    content = {"model": TINY.name, "model_arguments": TINY.arguments, "num_classes": None}
    Path("settings.yaml").write_text(json.dumps(content))  # as a search writes it
    expected = autoprune("inspect", policy, "--json")
    for named in ([], [TINY.name], ["--config", "settings.yaml"]):
        outcome = autoprune("inspect", *named, "--policy", policy, "--json")
        assert (outcome.code, outcome.out, outcome.err) == (0, expected.out, expected.err), named


def test_a_name_that_does_not_exist_is_refused_with_near_ones(autoprune: Run) -> None:
    assert autoprune("inspect", "retinanet_resnet51_fpn").is_refusal("did you mean", "retinanet_resnet50_fpn")
    assert autoprune("inspect", "runs/nothing").is_refusal("runs/nothing")


def test_names_are_listed_one_a_line(autoprune: Run) -> None:
    names = autoprune("inspect", "--list").out.split("\n")
    assert {"retinanet_resnet50_fpn", "retinanet_resnet18_fpn", "fcos_resnet50_fpn"} <= set(names)


def test_the_list_says_what_an_extra_would_bring(autoprune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"ultralytics", "timm"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in present else None)
    lines = autoprune("inspect", "--list").out.split("\n")
    assert any(line.split() == ["timm:resnet18", "installed"] for line in lines)
    assert any(line.split()[1:] == ["pip", "install", "'autoprune[libreyolo]'"] for line in lines)
    listed = json.loads(autoprune("inspect", "--list", "--json").out)
    assert "retinanet_resnet18_fpn" in listed["detectors"]
    assert {each["library"]: each["installed"] for each in listed["libraries"]} == {
        "ultralytics": True,
        "transformers": False,
        "libreyolo": False,
        "timm": True,
    }


@pytest.mark.parametrize("source", ["yolo11n.yaml", "runs/best.pt"])
def test_a_misspelled_library_is_refused_with_the_near_one(autoprune: Run, source: str) -> None:
    assert autoprune("inspect", f"ultralitics:{source}").is_refusal(f"did you mean ultralytics:{source}")


FACTORY = """
import os
import torch
from torch import nn

print("importing")

class Net(nn.Sequential):
    def forward(self, images):
        print("running")
        os.write(1, b"below Python\\n")
        return super().forward(torch.stack(list(images)))

def make(num_classes):
    print("building")
    return Net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))
"""


@pytest.fixture
def printing_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's detector that prints at every occasion, and states no input size."""
    (tmp_path / "printing.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "printing:make"
    sys.modules.pop("printing", None)


def test_what_a_factory_prints_is_no_part_of_the_json(
    printing_factory: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", printing_factory, "--num-classes", "5", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["model"]["name"] == printing_factory
    for line in ("importing", "building", "running", "below Python"):
        assert line in captured.err.splitlines()


def test_a_detector_that_states_no_size_is_counted_at_640_and_that_is_said(
    printing_factory: str, autoprune: Run
) -> None:
    outcome = autoprune("inspect", printing_factory, "--num-classes", "5", "--json")
    report = json.loads(outcome.out)
    assert report["input_size"] == [640, 640]
    assert report["gflops"] * 1e9 == pytest.approx((3 * 8 * 9 + 8 * 5) * 640 * 640)
    assert "640x640 is assumed; --input-size sets another" in outcome.err
    given = autoprune("inspect", printing_factory, "--num-classes", "5", "--input-size", "64x32", "--json")
    assert json.loads(given.out)["input_size"] == [64, 32]
    assert "assumed" not in given.err


def test_the_names_of_all_detectors_are_a_list_or_json(autoprune: Run) -> None:
    assert json.loads(autoprune("inspect", "--list", "--json").out)["detectors"] == names()
    assert autoprune("inspect", "--list").out.splitlines()[: len(names())] == names()


def test_what_can_be_emptied_is_shown_with_what_it_saves(
    autoprune: Run, tiny_model: list[str], model: torch.nn.Module, graph: ChannelGraph
) -> None:
    report = json.loads(autoprune("inspect", *tiny_model, "--num-classes", "6", "--json").out)
    groups = {group["name"]: group for group in report["groups"]}
    branch = groups["backbone.body.layer1.0.conv1"]
    assert (branch["can_empty"], branch["empty_reason"]) == (True, None)
    emptied = flops(prune(model, graph, keep={branch["name"]: []}), (64, 64))
    assert branch["emptied_gflops_share"] == pytest.approx(1 - emptied / flops(model, (64, 64)))
    stem = groups["backbone.body.conv1"]
    assert (stem["can_empty"], stem["emptied_gflops_share"]) == (False, None)
    assert stem["empty_reason"].startswith("carries all that")
    lines = autoprune("inspect", *tiny_model).out.splitlines()
    assert next(line for line in lines if "backbone.body.conv1 " in line).split()[-1] == "-"
