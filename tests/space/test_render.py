"""The written file reads back equal, and its comments are right."""

from pathlib import Path

import numpy as np

from autoprune.config import ModelSpec
from autoprune.space.derive import derive_space
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.render import render_space, save_space
from autoprune.space.resolve import resolve

SPEC = ModelSpec(name="retinanet_resnet18_fpn", arguments={"min_size": 192, "rate": 1e-5}, num_classes=4)


def test_derived_files_read_back_equal_and_carry_their_comments(tmp_path: Path, chain, importance_of) -> None:
    graph = chain(units=(1, 4, 1, 1))
    importance = importance_of(graph)
    file = derive_space(graph, importance, SPEC, (96, 128), "fisher", "block", 16, 24)
    path = tmp_path / "space.yaml"
    save_space(path, file, graph, importance)
    assert SpaceFile.load(path) == file
    lines = {
        line.split('"')[1]: line
        for line in path.read_text().splitlines()
        if "match: " in line and '"' in line
    }
    for name, group in graph.prunable.items():
        space = resolve(file, graph)
        kept = int(space.lowest[space.names.index(name)])
        # from the definition: units sorted by importance, the least important are removed
        units = np.sort(importance[name].reshape(-1, group.unit).sum(1))
        removed = units[: (group.width - kept) // group.unit].sum() / units.sum()
        assert f"{group.width} channels" in lines[name]
        assert f"keeps at least {kept}, without {100 * removed:.0f}% of the importance" in lines[name]
    assert "in units of 4" in lines["body.layer1.conv"]
    first = 1e5 * 3 * 64 + 2e5 * 64 * 64  # what writes and what reads the first group
    assert f"{100 * first / graph.cost.flops(graph.cost.dense):.1f}% of GFLOPs" in lines["body.layer0.conv"]
    assert "#   head.out has no consumer" in path.read_text()


def test_a_file_with_every_field_reads_back_equal(tmp_path: Path, chain, importance_of, space_file) -> None:
    graph = chain()
    file = space_file(
        GroupRule(match="body.*", max_ratio=0.123456789, tie="all of: them", min_width=3),
        GroupRule(match="head.*", frozen=True),
        model="package.module:make",
        model_arguments={"threshold": 1e-05, "layers": [1, 2], "name": "a: b", "on": True},
        granularity="stage",
    )
    path = tmp_path / "space.yaml"
    path.write_text(render_space(file, graph, importance_of(graph)))
    assert SpaceFile.load(path) == file
