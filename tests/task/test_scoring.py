"""Importance is computed once for the same settings, by one pass for several criteria."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from autoprune.config import make_config
from autoprune.detectors import load_state, save_state
from autoprune.errors import RunError
from autoprune.importance import load, save, score, score_together
from autoprune.task import scoring as module
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import ImageBatches, copy_scores, score_channels, score_several, scores_beside


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**{**demo_settings, "criterion": "l2"}))


def test_importance_is_computed_once_for_the_same_settings(demo_settings, tmp_path, monkeypatch):
    calls = []

    def counted(criteria, *arguments):
        calls.extend(criteria)
        return score_together(criteria, *arguments)

    monkeypatch.setattr(module, "score_together", counted)
    file = tmp_path / "importance.safetensors"
    task = load_task(make_config(**demo_settings))
    scores = [score_channels(task, "taylor", file) for _ in range(2)]
    assert calls == ["taylor"]
    assert all(np.array_equal(scores[0][name], scores[1][name]) for name in scores[0])
    more = load_task(make_config(**{**demo_settings, "importance_images": 3}))
    score_channels(more, "taylor", file)
    assert calls == ["taylor", "taylor"]
    score_several(more, ("taylor", "l2"), file)
    assert calls == ["taylor", "taylor", "l2"], "only what the file lacks"


def said(monkeypatch, do):
    lines = []
    monkeypatch.setattr(module, "say", lines.append)
    do()
    return lines


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"importance_images": 3}, "of 2 images, not 3: see --importance-images"),
        ({"seed": 1}, "with another --seed"),
        ({"weights": None}, "of other weights"),
        ({"model_arguments": {"max_size": 64}}, "of other --model-arguments, such as another input size"),
        ({"steps": 9, "batch_size": 1}, None),
        (None, "of other weights, training data, importance_images or seed"),  # of an earlier version
    ],
)
def test_scores_that_are_not_taken_are_named_with_what_differs(
    demo_settings, tmp_path, monkeypatch, changes, why
):
    space, run = tmp_path / "space.yaml", tmp_path / "importance.safetensors"
    before = load_task(make_config(**demo_settings))
    score_several(before, ("taylor", "l2"), scores_beside(space))
    if changes is None:
        save(scores_beside(space), "taylor", "of earlier times", load(scores_beside(space), "taylor"))
    kept = copy_scores(space, run)
    assert kept == scores_beside(space)
    assert copy_scores(space, run) == run, "the run's own by now"
    if changes == {"weights": None}:
        weights = tmp_path / "other.safetensors"
        save_state(
            {name: value * 1.01 for name, value in load_state(Path(demo_settings["weights"])).items()},
            weights,
        )
        changes = {"weights": str(weights)}
    if more := (changes or {}).get("model_arguments"):
        changes = {"model_arguments": {**demo_settings["model_arguments"], **more}}
    task = load_task(make_config(**{**demo_settings, **(changes or {})}))
    lines = said(monkeypatch, lambda: score_several(task, ("taylor", "l2"), run, kept))
    assert lines == ([] if why is None else [lines[0]])
    if why is not None:
        assert lines[0].startswith(f"the channels are scored again: {kept} holds scores {why}")
    assert said(monkeypatch, lambda: score_several(task, ("taylor", "l2"), run, kept)) == []


def test_criteria_in_one_pass_are_each_what_it_is_alone(task, tmp_path):
    file = tmp_path / "importance.safetensors"
    images = [task.train.batch([index], task.device) for index in (0, 3)]
    together = score_together(("joint", "taylor", "fisher", "l2"), task.model, task.graph, lambda: images)
    for criterion, scores in together.items():
        alone = score(criterion, task.model, task.graph, lambda: images)
        assert all(np.array_equal(alone[name], scores[name]) for name in alone)
    several = score_several(task, ("joint", "l2"), file)
    assert list(several) == ["joint", "l2"]
    assert all(np.array_equal(several["joint"][n], s) for n, s in score_channels(task, "joint", file).items())


def test_scores_by_weights_are_those_of_the_weights(task):
    """The l2 norm of each output channel, where a group has one producer that no norm layer follows."""
    name = "head.classification_head.conv.0.0"
    weight = task.model.get_parameter(f"{name}.weight").detach()
    scores = score_channels(task, "l2")[name]
    expected = weight.flatten(1).norm(dim=1).numpy()
    assert scores / scores.sum() == pytest.approx(expected / expected.sum(), rel=1e-5)


def test_batches_hold_the_chosen_images_in_order(task):
    size = task.config.batch_size
    chosen = [5, 2, *range(6, 6 + size)]
    batches = ImageBatches(task, chosen)
    assert batches.images == len(chosen)
    assert [len(images) for images, _ in batches] == [size, 2]
    assert len(batches) == 2, "a second pass gives them again"
    seen = [pair for images, targets in batches for pair in zip(images, targets, strict=True)]
    for index, (image, target) in zip(chosen, seen, strict=True):
        (expected,), (of_it,) = task.train.batch([index], task.device)
        assert bool((image == expected).all())
        assert int(target["image_id"]) == int(of_it["image_id"])


def test_scores_beside_a_space_file_start_a_run_but_do_not_replace_its_own(tmp_path):
    space, run = tmp_path / "space.yaml", tmp_path / "run.safetensors"
    copy_scores(None, run)
    copy_scores(space, run)
    assert not run.exists()
    save(scores_beside(space), "l2", "settings", {"a": np.ones(3, dtype=np.float32)})
    copy_scores(space, run)
    assert run.read_bytes() == scores_beside(space).read_bytes()
    run.write_bytes(b"its own")
    copy_scores(space, run)
    assert run.read_bytes() == b"its own"


@pytest.mark.parametrize("change", ["a group is gone", "a group is shorter"])
def test_scores_of_another_detector_under_the_same_key_are_refused(task, tmp_path, change):
    file = tmp_path / "importance.safetensors"
    score_channels(task, "l2", file)
    with safe_open(file, "pt") as opened:
        key = opened.metadata()["l2"]
    scores = dict(load(file, "l2"))
    name = next(iter(scores))
    shorter = {} if change == "a group is gone" else {name: scores[name][1:]}
    del scores[name]
    save(file, "l2", key, {**scores, **shorter})
    with pytest.raises(RunError, match=f"{file} can't be read .*l2 scores of .* {name}.*; delete it"):
        score_channels(task, "l2", file)


def test_a_damaged_file_beside_the_space_is_blamed_itself(tmp_path):
    space, copy = tmp_path / "space.yaml", tmp_path / "run" / "importance.safetensors"
    scores_beside(space).write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"space\.importance\.safetensors can't be read .*; delete it"):
        copy_scores(space, copy)
    assert not copy.exists()
