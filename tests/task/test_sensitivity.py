"""Sensitivity curves against masked detectors; which of a file are used, which measured again."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from autoprune import progress
from autoprune.config import make_config
from autoprune.errors import RunError
from autoprune.graph import mask, prune
from autoprune.importance.weights import l2
from autoprune.task import probe, sensitivity
from autoprune.task.pruning_task import load_task
from autoprune.task.training_start import reinitialize

RATIOS = (0.5, 0.9)


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**{**demo_settings, "recalibration_images": 0}))


@pytest.fixture
def order(task):
    return l2(task.model, task.graph)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(sensitivity, "RATIOS", RATIOS)
    monkeypatch.setattr(probe, "IMAGES", 4)


def loss(model, task, images):
    """The detection loss, whose mean is over images of a batch, all at once; norms keep their statistics."""
    model.train()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    with torch.no_grad():
        return float(sum(model(*task.val.batch(images)).values()))


def images_of(measure):
    """Indices of the images that losses are measured on."""
    return [index for batch in measure.probe._batches for index in batch]


def kept(task, order, name, width):
    group = task.graph.groups[name]
    assert group.unit == 1
    return {name: sorted(np.argsort(-order[name], kind="stable")[:width].tolist())}


def test_a_curve_is_the_loss_of_the_masked_detector_less_that_of_the_dense_one(task, order):
    measure = sensitivity.SensitivityProbe(task, order)
    images = images_of(measure)
    assert len(set(images)) == 4
    for name in list(task.graph.prunable)[::6]:
        curve = measure(name)
        width = task.graph.groups[name].width
        assert curve.widths == (width // 2, round(width * 0.1))
        for channels, rise in zip(curve.widths, curve.rises, strict=True):
            masked = mask(task.model, task.graph, kept(task, order, name, channels))
            dense = mask(task.model, task.graph, {})
            expected = loss(masked, task, images) - loss(dense, task, images)
            assert rise == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_curve_of_a_group_that_trials_may_empty_ends_without_it(demo_settings, order):
    task = load_task(make_config(**{**demo_settings, "recalibration_images": 0}))
    measure = sensitivity.SensitivityProbe(task, order, empty=True)
    name = task.graph.emptiable[0]
    curve = measure(name)
    masked, dense = (mask(task.model, task.graph, keep) for keep in ({name: []}, {}))
    expected = loss(masked, task, images_of(measure)) - loss(dense, task, images_of(measure))
    assert curve.widths[-1] == 0
    assert curve.rises[-1] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    whole = next(name for name in task.graph.prunable if name not in task.graph.emptiable)
    assert measure(whole).widths[-1] > 0


def test_it_is_measured_after_the_reconstruction(task, order):
    config = task.config.model_copy(update={"reconstruct_images": 8})
    task = replace(task, config=config)
    measure = sensitivity.SensitivityProbe(task, order)
    name = next(iter(task.graph.prunable))
    curve = measure(name)
    keep = kept(task, order, name, curve.widths[-1])
    start = reinitialize(task, prune(task.model, task.graph, keep), keep, measure.seed)
    dense = mask(task.model, task.graph, {})
    expected = loss(start, task, images_of(measure)) - loss(dense, task, images_of(measure))
    assert curve.rises[-1] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    masked = loss(mask(task.model, task.graph, keep), task, images_of(measure))
    assert curve.rises[-1] < masked - loss(dense, task, images_of(measure))


class Measured(list):
    """Stands in for the measurement: notes which groups are asked for."""

    def __call__(self, names):
        for name in names:
            self.append(name)
            yield name, sensitivity.Curve((2, 1), (0.25, float(len(name))))


def test_an_interrupt_loses_one_group_at_most(task, order, tmp_path):
    class Interrupted(Measured):
        def __call__(self, names):
            for number, pair in enumerate(super().__call__(names)):
                if number == 3:
                    raise KeyboardInterrupt
                yield pair

    file, first, second = tmp_path / "curves.json", Interrupted(), Measured()
    with pytest.raises(KeyboardInterrupt):
        sensitivity.measure_curves(task, order, file, first)
    curves = sensitivity.measure_curves(task, order, file, second)
    assert first[:3] + second == list(task.graph.prunable)
    assert list(curves) == list(task.graph.prunable)
    again = Measured()
    assert sensitivity.measure_curves(task, order, file, again) == curves
    assert not again


def test_curves_of_other_weights_order_or_settings_are_not_used(task, order, tmp_path):
    file = tmp_path / "curves.json"
    sensitivity.measure_curves(task, order, file, Measured())
    config = task.config.model_copy(update={"reconstruct_images": 16})
    others = (
        (replace(task, weights_sha256="0" * 64), order),
        (replace(task, config=config), order),
        (replace(task, train=task.val), order),
        (task, {name: scores[::-1].copy() for name, scores in order.items()}),
    )
    for other, scores in others:
        measured = Measured()
        sensitivity.measure_curves(other, scores, file, measured)
        assert measured == list(task.graph.prunable)
    measured = Measured()
    sensitivity.measure_curves(task, order, file, measured, empty=True)
    assert measured == list(task.graph.prunable)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"key": "a"}',
        '{"key": "a", "curves": {"x": [[1], ["y"]]}}',
        '{"curves": {}, "key": 1}',
    ],
)
def test_a_damaged_file_is_refused_by_name(task, order, tmp_path, text):
    file = tmp_path / "curves.json"
    file.write_text(text)
    with pytest.raises(RunError, match=r"curves\.json.*delete the file"):
        sensitivity.measure_curves(task, order, file, Measured())
    assert file.read_text() == text


@pytest.mark.parametrize(
    "curve", [[[2, 1], [0.5]], [[1, 2], [0.5, 0.25]], [[2, 0], [0.5, 0.25]], [[10**6], [0.5]], [[2], ["NaN"]]]
)
def test_a_curve_that_is_none_of_its_group_is_refused_by_name(task, order, tmp_path, curve):
    file = tmp_path / "curves.json"
    sensitivity.measure_curves(task, order, file, Measured())
    content = json.loads(file.read_text())
    name = next(name for name in task.graph.prunable if name not in task.graph.emptiable)
    content["curves"][name] = curve
    file.write_text(json.dumps(content).replace('"NaN"', "NaN"))
    measured = Measured()
    with pytest.raises(RunError, match=rf"curves\.json.*{name}.*delete the file"):
        sensitivity.measure_curves(task, order, file, measured)
    assert not measured


def test_a_file_that_lacks_a_group_is_completed(task, order, tmp_path, monkeypatch):
    file = tmp_path / "curves.json"
    sensitivity.measure_curves(task, order, file, Measured())
    content = json.loads(file.read_text())
    lost = next(iter(task.graph.prunable))
    del content["curves"][lost]
    file.write_text(json.dumps(content))
    measured = Measured()
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0)
    out = io.StringIO()
    with progress.show(Console(file=out, width=500)):
        sensitivity.measure_curves(task, order, file, measured)
        assert measured == [lost]
        sensitivity.measure_curves(task, order, file, measured)
    assert measured == [lost]
    total = len(task.graph.prunable)
    begun, counted, read = out.getvalue().splitlines()
    assert begun == "sensitivity curves of 1 group, each narrowed alone"
    assert counted.startswith(f"sensitivity curves: {total}/{total}, ")
    assert read == f"the sensitivity curves are read from {file}"


def test_curves_beside_a_space_file_start_a_run_but_do_not_replace_its_own(task, order, tmp_path):
    space, run = tmp_path / "space.yaml", tmp_path / "run.json"
    for source in (None, space):
        sensitivity.copy_curves(source, run)
        assert not run.exists()
    curves = sensitivity.measure_curves(task, order, tmp_path / "space.curves.json", Measured())
    sensitivity.copy_curves(space, run)
    measured = Measured()
    assert sensitivity.measure_curves(task, order, run, measured) == curves
    assert not measured
    run.write_text("its own")
    sensitivity.copy_curves(space, run)
    assert run.read_text() == "its own"


def test_a_damaged_file_beside_the_space_is_blamed_itself(tmp_path):
    (tmp_path / "space.curves.json").write_text("damaged")
    with pytest.raises(RunError, match=r"space\.curves\.json.*delete the file"):
        sensitivity.copy_curves(tmp_path / "space.yaml", tmp_path / "curves.json")
    assert not (tmp_path / "curves.json").exists()
