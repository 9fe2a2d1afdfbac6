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
        "weight_decay": 1, "warmup": 0.5, "clip_norm": 3, "ema_decay": 0.5, "distill": 3,
        "recalibration_images": 3, "precision": "float32", "distill_weighting": "none", "distill_logits": 1,
        "distill_head": False,
        "reconstruct_images": 2, "regrow_rounds": 1, "check_proxies": 5, "confirm": 1,
        "latency_runtime": "openvino", "track": ("mlflow",), "empty_blocks": True, "curves": False,
        "detection_precision": "bfloat16", "racing": True,
        "input_sizes": (1.0, 0.5), "weights_key": "ema", "val_fraction": 0.2, "labels": {"a": 1},
        "evaluator": "pycocotools", "augment": True,
    }  # fmt: skip
    assert set(others) == set(type(config).model_fields)
    for name, value in others.items():
        changed = make_config(**{"out": run.path, name: value})
        if name in MAY_CHANGE:
            run.check(changed)
        else:
            with pytest.raises(RunError, match=f"another configuration: {name} was "):
                run.check(changed)


def test_a_detectors_file_that_is_not_there_is_named_and_not_taken_for_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.pt").touch()
    (tmp_path / "elsewhere").mkdir()
    run = RunDirectory(tmp_path / "run")
    run.write_config(make_config(out=run.path, model="ultralytics:best.pt"), {})
    run.check(make_config(out=run.path, model="ultralytics:best.pt"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    missing = rf"no file best.pt from here, and \S+ was made with {tmp_path}/best.pt"
    with pytest.raises(RunError, match=f"{missing}, give that path"):
        run.check(make_config(out=run.path, model="ultralytics:best.pt"))
    with pytest.raises(RunError, match="another configuration: model was"):
        run.check(make_config(out=run.path, model="ultralytics:other.pt"))
    (tmp_path / "best.pt").unlink()
    with pytest.raises(RunError, match=f"{missing}, which is not there any more; restore it"):
        run.check(make_config(out=run.path, model="ultralytics:best.pt"))
    (tmp_path / "elsewhere" / "best.pt").touch()  # another file of the same name
    with pytest.raises(RunError, match="another configuration: model was"):
        run.check(make_config(out=run.path, model="ultralytics:best.pt"))


def test_a_test_split_may_be_added_and_is_read_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {name: {"annotations": f"{name}.json", "images": "images"} for name in ("train", "val", "test")}
    test = splits.pop("test")
    run = RunDirectory(tmp_path / "run")
    run.write_config(make_config(out=run.path, data=splits), {})
    run.check(make_config(out=run.path, data={**splits, "test": test}))
    other = RunDirectory(tmp_path / "other")
    other.write_config(make_config(out=other.path, data={**splits, "test": test}), {})
    assert dict(other.config().data)["test"].annotations == tmp_path / "test.json"


def test_relative_paths_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(Path("run"))
    config = make_config(out=run.path, data="images")
    run.write_config(config, {"autoprune": "0"})
    monkeypatch.chdir("/")
    moved = RunDirectory(tmp_path / "run")
    assert moved.config().data == tmp_path / "images"
    moved.check(make_config(out=tmp_path / "run", data=tmp_path / "images"))


@pytest.mark.parametrize(
    ("model", "is_path"),
    [
        ("ultralytics:sub/best.pt", True),
        ("transformers:sub", True),
        ("libreyolo:sub/best.pt", True),
        ("libreyolo:sub", False),  # a name may be that of a folder
        ("timm:sub", False),
        ("ultralytics:yolo11n.yaml", False),
        ("retinanet_resnet18_fpn", False),
    ],
)
def test_a_librarys_file_is_found_from_any_folder(tmp_path, monkeypatch, model, is_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/best.pt").touch()
    (tmp_path / "sub/model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(tmp_path / "run")
    config = make_config(model=model, out=run.path)
    run.write_config(config, {})
    monkeypatch.chdir("/")
    library, _, source = model.partition(":")
    assert run.config().model == (f"{library}:{tmp_path / source}" if is_path else model)
    assert run.config().weights == (str(tmp_path / source) if is_path else None)
    monkeypatch.chdir(tmp_path)
    run.check(make_config(model=model, out=run.path))  # the same run


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


@pytest.mark.parametrize("name", ["config.yaml", "study.journal", "front.csv", "space.yaml"])
@pytest.mark.parametrize("method", ["check", "config"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name, method):
    run = RunDirectory(tmp_path)
    config = make_config(out=tmp_path)
    run.write_config(config, {})
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(RunError, match=rf"{name} is a folder, not a file; move it away"):
        run.check(config) if method == "check" else run.config()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "policies").write_text("")
    with pytest.raises(RunError, match="policies is a file, not a folder; move it away"):
        RunDirectory(tmp_path).config()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.safetensors", "the folder of a detector"), ("annotations", "a data set")],
)
def test_a_run_is_not_begun_in_a_folder_of_something_else(tmp_path, name, kind):
    (tmp_path / name).write_text("")
    with pytest.raises(RunError, match=rf"is {kind} \(it holds {name}\); choose another --out"):
        RunDirectory(tmp_path).check(make_config(out=tmp_path))


@pytest.mark.parametrize("left", ["front.csv", "policies/trial-0001.yaml", "recovered/trial-0002"])
def test_results_without_a_study_are_no_new_run(tmp_path, left):
    run = RunDirectory(tmp_path)
    run.check_study(begun=False)
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("")
    run.check_study(begun=True)
    with pytest.raises(RunError, match=rf"holds results of a search \({left}\), but its study is missing"):
        run.check_study(begun=False)


def test_a_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(RunError, match=rf"cannot use {tmp_path}: Permission denied; check the path"):
        RunDirectory(tmp_path).config()


def test_the_size_of_a_run_counts_no_file_that_goes_meanwhile(tmp_path, monkeypatch):
    """Another command replaces a file of the run while its size is taken."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(500_000))
    temporary = tmp_path / ".b.tmp"
    temporary.touch()
    listed = sorted(tmp_path.rglob("*"))
    temporary.unlink()
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: iter([*listed, tmp_path]))
    assert RunDirectory(tmp_path).megabytes() == 1.0
