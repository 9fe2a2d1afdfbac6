"""What the user gave is checked before anything is loaded, and each refusal says what to type."""

import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from autoprune import progress
from autoprune.config import make_config
from autoprune.detectors import Resize
from autoprune.errors import ConfigError, DataError, ModelError
from autoprune.images.decode import resized_size
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.task.checks import (
    check_batch_size,
    check_reconstruction,
    input_files,
    pick_device,
    refuse_missing,
    trained_on,
    warn_enlarged,
    with_space,
)
from autoprune.training.batches import draw_batch

SPACE = SpaceFile(
    model="retinanet_resnet18_fpn",
    model_arguments={"min_size": 64},
    input_size=(64, 96),
    criterion="taylor",
    groups=(GroupRule(match="*", max_ratio=0.5),),
)


REMEDY = """give --model-arguments '{"max_size": 9, "min_size": 192}'"""


@pytest.fixture
def splits(tmp_path):
    """Annotations and images of two splits, each named on its own."""
    paths = {}
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}.json").write_text("{}")
        paths[split] = {"annotations": tmp_path / f"{split}.json", "images": tmp_path / split}
    return paths


@pytest.mark.parametrize("name", ["abacus", "meta", "hpu", "xpu", "cuda:99", "privateuseone"])
def test_a_device_that_is_not_there_or_holds_no_values_is_refused(name):
    with pytest.raises(ConfigError, match=f"device '{name}' can't be used here"):
        pick_device(make_config(device=name))


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert pick_device(make_config()).type == kind


def test_the_number_of_threads_is_set(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    pick_device(make_config(device="cpu"))
    assert threads == []
    pick_device(make_config(device="cpu", threads=3))
    assert threads == [3]


@pytest.mark.parametrize(
    ("size", "rule", "said"),
    [
        (
            (192, 256),
            Resize(800, 1333),
            ["4.2-fold", "192 pixels", REMEDY],
        ),
        ((64, 64), Resize(fixed=(320, 320)), ["5.0-fold"]),
        ((480, 640), Resize(800, 1333), []),  # as COCO's
        ((480, 640), None, []),
    ],
)
def test_a_detector_that_enlarges_images_much_is_named_with_the_remedy(size, rule, said):
    images = SimpleNamespace(name="train", stored_sizes=[size] * 3, sizes=[resized_size(size, rule)] * 3)
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=300)):
        warn_enlarged(images, rule, {"max_size": 9})
    text = lines.getvalue()
    assert text.count("\n") == bool(said)
    assert all(part in text for part in said)
    assert ("--model-arguments" in text) is (len(said) == 3)


def test_a_split_that_a_search_does_not_read_may_be_elsewhere(splits):
    test = {"annotations": "gone.json", "images": "gone"}
    refuse_missing(make_config(data={**splits, "test": test}, weights="DEFAULT"))


@pytest.mark.parametrize("missing", ["train.json", "train", "val.json", "val"])
def test_data_that_does_not_exist_is_named(splits, tmp_path, missing):
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"no data at {tmp_path / missing}: give --data FOLDER"):
        refuse_missing(make_config(data=splits, weights="DEFAULT"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, r"no dense weights for retinanet_resnet50_fpn: give --weights FILE .*`autoprune train`"),
        ("gone.pt", r"no weights at gone\.pt: give --weights FILE"),
        ("gone.safetensors", r"no weights at gone\.safetensors"),
    ],
)
def test_weights_that_do_not_exist_are_refused(splits, weights, message):
    with pytest.raises(ConfigError, match=message):
        refuse_missing(make_config(data=splits, weights=weights))


@pytest.mark.parametrize(
    ("model", "message"),
    [("retinanet_resnet18_fpm", "did you mean retinanet_resnet18_fpn"), ("timm:", "names no detector")],
)
def test_a_model_that_is_none_is_named_before_its_weights_are(splits, model, message):
    with pytest.raises(ModelError, match=message):
        refuse_missing(make_config(data=splits, model=model))


def test_published_weights_are_named_without_a_file(splits):
    refuse_missing(make_config(data=splits, weights="DEFAULT"))


def test_a_batch_holds_at_most_all_training_images():
    check_batch_size(8, 8)
    check_batch_size(8, 5)  # the default
    with pytest.raises(ConfigError, match="batch_size: 9 is more than the 8 training images; give 8 or less"):
        check_batch_size(9, 8)


def test_a_reconstruction_needs_an_image_to_hold_out():
    check_reconstruction(32, 2)
    check_reconstruction(0, 1)
    with pytest.raises(
        ConfigError, match=r"needs 2 training images at least, and .* give --reconstruct-images 0"
    ):
        check_reconstruction(32, 1)


def test_workers_read_data_and_weights(splits, tmp_path):
    weights = tmp_path / "dense.safetensors"
    weights.write_text("")
    read = input_files(make_config(data=splits, weights=str(weights)))
    assert sorted(read) == sorted(
        tmp_path / name for name in ("train.json", "train", "val.json", "val", "dense.safetensors")
    )
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    folder = input_files(make_config(data=tmp_path, weights="DEFAULT"))
    assert folder == (tmp_path, tmp_path / "annotations" / "instances_val.json")


def test_a_space_says_what_is_left_open():
    config = with_space(make_config(seed=5), SPACE)
    assert (config.model, config.model_arguments, config.criterion, config.input_size, config.seed) == (
        "retinanet_resnet18_fpn",
        {"min_size": 64},
        "taylor",
        (64, 96),
        5,
    )
    given = with_space(make_config(model_arguments={"min_size": 32}, input_size=(8, 8)), SPACE)
    assert (given.model_arguments, given.input_size) == ({"min_size": 32}, (8, 8))
    without = make_config(seed=5)
    assert with_space(without, None) is without


def test_a_space_of_something_else_is_refused():
    with pytest.raises(ConfigError, match="the search space is for retinanet_resnet18_fpn, not fcos_r"):
        with_space(make_config(model="fcos_resnet18_fpn"), SPACE)
    with pytest.raises(ConfigError, match="ranks channels by taylor, not l2; change `criterion` there"):
        with_space(make_config(criterion="l2"), SPACE)


def test_a_trial_that_trains_on_fewer_images_than_there_are_says_how_many():
    """The reference are the batches themselves."""
    config = make_config(rungs=[0, 3, 5], batch_size=4)
    for images in (16, 20, 21, 100):
        drawn = {index for step in range(5) for index in draw_batch(images, 4, step, 0).indices}
        line = trained_on(config, images)
        assert (line is None) == (len(drawn) == images)
        if line is not None:
            assert line.startswith(
                f"each trial trains on {len(drawn)} of {images} training images at most, 5 steps of 4;"
            )
    assert trained_on(make_config(rungs=[0]), 100) is None
