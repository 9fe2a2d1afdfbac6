"""bfloat16 is taken where the dense mAP allows it; the GPU is a name here, and mAPs are given."""

from types import SimpleNamespace

import pytest
import torch

from autoprune.config import make_config
from autoprune.errors import ConfigError
from autoprune.run.results import load_result
from autoprune.search.pipeline import search
from autoprune.task import detection_precision
from autoprune.task.detection_precision import (
    NOTE,
    DetectionPrecision,
    check_detection,
    noted_detection,
)
from autoprune.task.pruning_task import load_task


def task_on(device, setting="auto"):
    config = make_config(budget_gflops="50%", detection_precision=setting, proxy_images=7)
    return SimpleNamespace(config=config, model="dense", val="val", device=torch.device(device))


@pytest.fixture
def measured(monkeypatch):
    """Sets the mAP without and with bfloat16; returns the list of the evaluations."""

    def measure(maps):
        calls = []

        def evaluate(model, split, device, batch_size, images, amp):
            calls.append((model, split, images, amp))
            return SimpleNamespace(map=maps[amp])

        monkeypatch.setattr(detection_precision, "evaluate", evaluate)
        return calls

    return measure


@pytest.mark.parametrize(
    ("half", "precision"),
    [(0.4, "bfloat16"), (0.399, "bfloat16"), (0.401, "bfloat16"), (0.3985, "float32"), (0.402, "float32")],
)
def test_on_cuda_the_dense_map_decides_within_a_tenth_of_a_point(half, precision, measured):
    calls = measured({False: 0.4, True: half})
    checked = check_detection(task_on("cuda"))
    assert checked == DetectionPrecision(precision, 0.4, half)
    assert calls == [("dense", "val", 7, False), ("dense", "val", 7, True)]
    assert f"{100 * half:.2f} in bfloat16, 40.00 in float32" in checked.line


@pytest.mark.parametrize(
    ("setting", "device", "precision"),
    [("auto", "cpu", "float32"), ("bfloat16", "cuda", "bfloat16"), ("float32", "cuda", "float32")],
)
def test_elsewhere_and_where_it_is_given_nothing_is_measured(setting, device, precision, measured):
    calls = measured({})
    checked = check_detection(task_on(device, setting))
    assert (checked, calls) == (DetectionPrecision(precision), [])


def test_bfloat16_is_refused_where_it_would_do_nothing():
    with pytest.raises(ConfigError, match=r"bfloat16 does nothing on this device \(cpu\)"):
        check_detection(task_on("cpu", "bfloat16"))


def test_a_search_checks_once_and_keeps_it_with_the_run(demo_settings, tmp_path, monkeypatch):
    checks = []

    def check(task):
        checks.append(task.config.detection_precision)
        return DetectionPrecision("bfloat16", 0.25, 0.2505)

    monkeypatch.setattr("autoprune.search.pipeline.check_detection", check)
    settings = {**demo_settings, "criterion": "l2", "rungs": (0,), "out": tmp_path / "run"}
    for trials in (1, 2):  # the second one resumes
        search({**settings, "trials": trials})
    assert checks == ["auto"]
    notes = load_result(tmp_path / "run").notes
    assert noted_detection(notes) == DetectionPrecision("bfloat16", 0.25, 0.2505)
    head = (tmp_path / "run" / "config.yaml").read_text()
    assert "# detection: detection in bfloat16: the dense detector has mAP 25.05 in bfloat16, 25.00" in head
    assert "detection_precision: auto" in head, "the same command resumes it"


def test_trials_are_evaluated_in_the_precision_of_the_run(demo_settings, monkeypatch):
    from autoprune.task import evaluator as module

    seen = []

    def evaluate(*args, **options):
        seen.append(options["amp"])
        return SimpleNamespace(map=0.5, map50=0.5)

    monkeypatch.setattr(module, "evaluate", evaluate)
    for precision, amp in (("bfloat16", True), ("float32", False), ("auto", False)):
        task = load_task(make_config(**{**demo_settings, "detection_precision": precision}))
        space = SimpleNamespace(keep=lambda _: {}, as_array=lambda widths: widths)
        evaluator = module.PolicyEvaluator(task, space, {})
        evaluator._scores(task, task.model)
        assert seen.pop() is amp


def test_the_note_of_a_run_without_a_check_is_none():
    assert noted_detection({}) is None
    assert noted_detection({NOTE: {"precision": "float32"}}) == DetectionPrecision("float32")
