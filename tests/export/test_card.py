"""The card says what the files beside it say."""

import ast
import dataclasses
import hashlib
import json
import re

import pytest

from autoprune.config import ModelSpec
from autoprune.export.card import add_latencies, write_card
from autoprune.policy import Policy

METRICS = {
    "trial": 17,
    "origin": "sampler",
    "data": "bccd",
    "images": 87,
    "gflops": 4.0,
    "mparams": 15.0,
    "metrics": {"map": 0.4621, "map50": 0.7},
    "per_class": {"RBC": 0.5},
    "dense": {
        "metrics": {"map": 0.4632, "map50": 0.71},
        "per_class": {"RBC": 0.49},
        "gflops": 8.0,
        "mparams": 20.0,
    },
    "settings": {"steps": 200, "batch_size": 8, "learning_rate": 0.0003, "distill": 1.0, "seed": 5},
    "versions": "autoprune 0.1.0, torch 2.8.0",
}


@pytest.fixture
def folder(tmp_path):
    policy = Policy(
        model=ModelSpec(name="retinanet_resnet18_fpn", num_classes=4),
        weights_sha256="ab" * 32,
        criterion="joint",
        input_size=(192, 256),
        widths={"backbone.body.conv1": 64, "head.conv": 10},
        keep={"backbone.body.conv1": tuple(range(60)), "head.conv": (0, 1)},
        metrics={"map": 0.4621, "gflops": 4.0, "mparams": 15.0},
    )
    folder = tmp_path / "trial-0017"
    policy.save(folder / "policy.yaml")
    return folder


def rows(card):
    """Cells of every table row by the first cell."""
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in card.splitlines()
        if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in table}


def test_figures_are_those_of_the_files(folder):
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    row = {"label": "a CPU, torch 2.8", "median_ms": 12.34, "p10_ms": 11.0, "p90_ms": 14.0, "dense_ms": 24.68}
    add_latencies(folder, [{**row, "median_ms": 99.0}, {**row, "label": "a GPU, torch 2.8"}])
    add_latencies(folder, [row])  # takes the place of the first
    write_card(folder)
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    table = rows(card)
    assert table["mAP (IoU 0.50:0.95)"] == ["46.3", "46.2", "-0.1"]
    assert table["mAP of RBC"] == ["49.0", "50.0", "+1.0"]
    assert table["GFLOPs (multiply-adds, one image)"] == ["8", "4 (50%)"]
    assert table["a CPU, torch 2.8"] == ["24.7", "12.3 (50%)", "11.0 to 14.0"]
    assert "a GPU, torch 2.8" in table
    digest = hashlib.sha256((folder / "policy.yaml").read_bytes()).hexdigest()
    for part in (
        digest,
        "12 channels of 2 groups",
        "87 images of val of bccd",
        "trial 17",
        "192x256",
        "50% of the",
    ):
        assert part in card
    assert 'autoprune.load("trial-0017")' in card
    assert not re.search(r"None|\bnan\b", card)


def test_a_dense_detector_at_another_size_has_it_beside_its_latency(folder):
    row = {"label": "a CPU, 96x96", "median_ms": 6.0, "p10_ms": 5.0, "p90_ms": 7.0, "dense_ms": 24.0}
    add_latencies(folder, [{**row, "dense_network_size": [128, 160]}])
    write_card(folder)
    card = (folder / "MODEL_CARD.md").read_text()
    assert rows(card)["a CPU, 96x96"] == ["24.0 at 128x160", "6.0 (25%)", "5.0 to 7.0"]


def test_the_origin_of_a_trial_is_in_the_words_of_the_front(folder):
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    write_card(folder)
    assert "- trial 17 of its search (searched)" in (folder / "MODEL_CARD.md").read_text().splitlines()


def test_missing_figures_are_named_with_the_command_that_measures_them(folder):
    write_card(folder)
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Not measured: `autoprune eval`" in card
    assert "Not measured: `autoprune latency" in card
    assert "onnx" not in card.lower()
    assert not re.search(r"None|\bnan\b", card)
    (folder / "raw_heads.onnx").write_bytes(b"")
    write_card(folder)
    assert "`raw_heads.onnx`: ONNX, fixed input" in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_what_a_long_argument_holds_is_named_and_not_shown(folder):
    policy = Policy.load(folder / "policy.yaml")
    layers = [[-1, 1, "Conv", [64, 3, 2]] for _ in range(50)]
    held = {"yaml": {"nc": 80, "yaml_file": "yolo11n.yaml", "backbone": layers}, "imgsz": 320}
    model = ModelSpec(name="ultralytics:best.pt", num_classes=4, arguments=held)
    dataclasses.replace(policy, model=model).save(folder / "policy.yaml")
    write_card(folder)
    head = (folder / "MODEL_CARD.md").read_text().partition("\n## ")[0]
    assert '`ultralytics:best.pt` with {"imgsz": 320} and the `yaml` of `policy.yaml` (yolo11n.yaml)' in head
    assert "of 3 classes" in head
    assert "nc" not in head
    assert len(head) < 500


def test_labels_and_emptied_groups_are_named(folder):
    policy = Policy.load(folder / "policy.yaml")
    write_card(folder)
    plain = (folder / "MODEL_CARD.md").read_text()
    keep = {**policy.keep, "head.conv": ()}
    dataclasses.replace(policy, keep=keep, labels={2: "W|C", 1: "RBC"}).save(folder / "policy.yaml")
    write_card(folder)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "The labels of its detections: 1 RBC, 2 W\\|C." in card.splitlines()
    assert "- groups that keep no channels, so that their blocks are gone: `head.conv`" in card.splitlines()
    assert "labels of its" not in plain
    assert "keep no channels" not in plain


def test_names_from_the_data_are_text_not_markup(folder):
    evil, shown = "a|b\n<img src=x>  `c` *d*", r"a\|b \<img src=x> \`c\` \*d\*"
    dense = {**METRICS["dense"], "per_class": {evil: 0.4}}
    content = {**METRICS, "per_class": {evil: 0.5}, "dense": dense, "data": evil}
    (folder / "metrics.json").write_text(json.dumps(content))
    row = {"label": evil, "median_ms": 12.34, "p10_ms": 11.0, "p90_ms": 14.0}
    add_latencies(folder, [row])
    write_card(folder)
    card = (folder / "MODEL_CARD.md").read_text()
    assert f"| mAP of {shown} | 40.0 | 50.0 | +10.0 |" in card.splitlines()
    assert f"| {shown} | - | 12.3 | 11.0 to 14.0 |" in card.splitlines()
    assert f"87 images of val of {shown}." in card
    assert evil not in card


def test_the_command_to_load_a_folder_of_any_name_is_python(folder):
    quoted = folder.rename(folder.parent / 'a "b" \\ c')
    write_card(quoted)
    line = next(
        line for line in (quoted / "MODEL_CARD.md").read_text().splitlines() if "autoprune.load(" in line
    )
    names = [node.value for node in ast.walk(ast.parse(line)) if isinstance(node, ast.Constant)]
    assert names == [quoted.name]
