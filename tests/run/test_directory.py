import os
from pathlib import Path

import pytest

from autoprune.config import MAY_CHANGE, ModelSpec, make_config
from autoprune.errors import RunError
from autoprune.policy import Policy
from autoprune.run.directory import RunDirectory


@pytest.mark.parametrize("cut", [0, 1, 5, 30])
def test_a_half_written_line_is_cut_off_the_journal(tmp_path, cut):
    run = RunDirectory(tmp_path)
    whole = '{"a": 1}\n{"b": 2}\n'
    run.journal_file.write_text(whole + '{"op_code": 8, "worker_id": "x'[:cut])
    Path(f"{run.journal_file}.lock").symlink_to(run.journal_file)
    run.repair_journal()
    assert run.journal_file.read_text() == whole
    assert not os.path.lexists(f"{run.journal_file}.lock")  # else optuna waits 30 s for it


def test_every_field_either_may_change_or_makes_another_configuration(tmp_path):
    run = RunDirectory(tmp_path / "run")
    config = make_config(out=run.path)
    run.write_config(config, {})
    others = {
        "model": "x", "model_arguments": {"a": 1}, "num_classes": 7, "norm": "freeze", "weights": "w",
        "data": "elsewhere", "input_size": (1, 2), "image_cache_gib": 1, "strict": True, "device": "cpu",
        "threads": 3, "seed": 9, "budget_gflops": "5", "budget_mparams": "5", "budget_latency_ms": "5",
        "objectives": ("map",), "criterion": "l1", "importance_images": 3, "space": "s.yaml", "trials": 7,
        "sampler": "gp", "warm_starts": False, "rungs": (3,), "rung_keep": 0.1, "proxy_images": 3,
        "engine": "ray", "address": "a", "workers": 3, "cpus_per_trial": 3, "gpus_per_trial": 1,
        "storage": "sqlite://", "out": tmp_path / "run", "steps": 3, "batch_size": 3, "learning_rate": 1,
        "weight_decay": 1, "warmup": 0.5, "clip_norm": 1, "ema_decay": 0.5, "distill": 3,
        "recalibration_images": 3, "precision": "float32", "distill_weighting": "none", "distill_logits": 1,
        "reconstruct_images": 2, "regrow_rounds": 1, "check_proxies": 5, "confirm": 1,
        "latency_runtime": "openvino", "track": ("mlflow",),
    }  # fmt: skip
    assert set(others) == set(type(config).model_fields)
    for name, value in others.items():
        changed = make_config(**{"out": run.path, name: value})
        if name in MAY_CHANGE:
            run.check(changed)
        else:
            with pytest.raises(RunError, match=f"another configuration: {name} was "):
                run.check(changed)


def test_relative_paths_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(Path("run"))
    config = make_config(out=run.path, data="images")
    run.write_config(config, {"autoprune": "0"})
    monkeypatch.chdir("/")
    moved = RunDirectory(tmp_path / "run")
    assert moved.config().data == tmp_path / "images"
    moved.check(make_config(out=tmp_path / "run", data=tmp_path / "images"))


def test_the_front_that_is_written_replaces_the_last(tmp_path):
    def policy_of(score):
        return Policy(
            model=ModelSpec(name="x", num_classes=2), weights_sha256="w", criterion="l2", input_size=(1, 1),
            widths={"a": 2}, keep={"a": (0,)}, metrics={"map": score},
        )  # fmt: skip

    def write(run, scores):
        rows = [{"trial": trial, "map": score} for trial, score in scores.items()]
        run.write_front(rows, {trial: policy_of(score) for trial, score in scores.items()})
        files = {int(file.stem.removeprefix("trial-")): Policy.load(file) for file in run.policies.iterdir()}
        assert {trial: policy.metrics["map"] for trial, policy in files.items()} == scores

    run = RunDirectory(tmp_path)
    write(run, {1: 0.5, 2: 0.25})
    write(run, {2: 0.25})
    assert run.front_file.read_text() == "trial,map\n2,0.25\n"
    run.front_file.write_bytes(b"\xe1 no text")
    write(run, {2: 0.125})  # re-evaluated
    write(run, {1: 0.5})
    write(run, {2: 0.125})
    write(RunDirectory(tmp_path), {2: 0.25, 3: 0.5})
