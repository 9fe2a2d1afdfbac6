import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from autoprune.config import make_config
from autoprune.data.coco import open_data
from autoprune.data.detections import detect
from autoprune.data.evaluate import NUMBERS, evaluate
from autoprune.data.evaluators import IMAGE, SCORE
from autoprune.data.shapes import make_shapes
from autoprune.detectors import Resize, load_dense, resize_rule
from autoprune.errors import DataError, ModelError
from autoprune.task.pruning_task import load_task

SHARED = Path(__file__).parents[3] / "shared"


class Oracle(nn.Module):
    """Answers with boxes made up per image, and remembers how it was called."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.calls, self.place = answers, [], 0
        self.inner = nn.BatchNorm2d(3)

    def __deepcopy__(self, memo):
        twin = Oracle(self.answers)
        twin.calls = self.calls  # a copy tells the original how it was called
        return twin

    def forward(self, images):
        self.calls.append(([tuple(image.shape) for image in images], self.training, torch.is_grad_enabled()))
        start, self.place = self.place, self.place + len(images)
        return self.answers[start : self.place]


def answer(boxes, scores, labels):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


NOTHING = answer([], [], [])


def truth(split, index, score=0.9):
    _, target = split.get(index)
    count = len(target["labels"])
    return answer(target["boxes"].tolist(), [score] * count, target["labels"].tolist())


@pytest.fixture
def shapes(tmp_path):
    return make_shapes(tmp_path / "set", 0, train=1, val=10, size=96)


def test_batches_that_do_not_fit_into_memory_are_evaluated_in_parts(shapes):
    """Memory is a stand-in that holds three images."""
    split = open_data(shapes, "val", Resize(48, 64))
    answers = [truth(split, index, score=0.9 - index / 20) for index in range(len(split))]

    def refuse(module, args):
        if len(args[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    small, whole = Oracle(answers), Oracle(answers)
    small.register_forward_pre_hook(refuse)
    chosen = range(len(split))
    expected = detect(whole, split, chosen, batch_size=8)
    np.testing.assert_array_equal(detect(small, split, chosen, batch_size=8), expected)
    assert [len(sizes) for sizes, *_ in whole.calls] == [8, 2]
    assert [len(sizes) for sizes, *_ in small.calls] == [2, 2, 2, 2, 2]


def test_all_numbers_are_those_of_pycocotools_on_a_results_file(shapes, tmp_path):
    """Noisy detections, written as a results file and scored by pycocotools from the files alone."""
    split = open_data(shapes, "val", Resize(48, 64))
    rng = np.random.default_rng(0)
    answers = []
    for index in range(len(split)):
        target = truth(split, index)
        noise = torch.from_numpy(rng.normal(0, 1.5, target["boxes"].shape)).float()
        extra = torch.tensor([[1.0, 1, 20, 20], [5, 5, 40, 30]])
        boxes = torch.cat([target["boxes"] + noise, extra])
        labels = torch.cat([target["labels"], torch.tensor([1, 99])])  # 99 is no class of the data
        answers.append({"boxes": boxes, "scores": torch.from_numpy(rng.random(len(boxes))), "labels": labels})
    rows = [
        {
            "image_id": index + 1,
            "category_id": int(label),
            "bbox": [2 * x1, 2 * y1, 2 * (x2 - x1), 2 * (y2 - y1)],
            "score": float(score),
        }
        for index, output in enumerate(answers)
        for (x1, y1, x2, y2), score, label in zip(
            output["boxes"].double().tolist(), output["scores"], output["labels"], strict=True
        )
        if label != 99
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    true = COCO(str(shapes / "annotations/instances_val.json"))
    reference = COCOeval(true, true.loadRes(str(tmp_path / "results.json")), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()

    metrics = evaluate(Oracle(answers), split, batch_size=3)
    assert 0.1 < metrics.map < 0.9
    for name, value in zip(NUMBERS, reference.stats, strict=True):
        mine = getattr(metrics, name)
        assert np.isnan(mine) if value < 0 else mine == pytest.approx(value, abs=1e-9), name
    for place, number in enumerate(reference.params.catIds):
        own = COCOeval(true, true.loadRes(str(tmp_path / "results.json")), "bbox")
        own.params.catIds = [number]
        own.evaluate()
        own.accumulate()
        own.summarize()
        name = true.cats[number]["name"]
        assert metrics.per_class[name] == pytest.approx(own.stats[0], abs=1e-9), place
    assert metrics.images == 10


def test_perfect_detections_score_one_and_none_score_zero(shapes):
    split = open_data(shapes, "val", Resize(64, 80))
    perfect = evaluate(Oracle([truth(split, index) for index in range(10)]), split)
    assert perfect.map == pytest.approx(1)
    assert perfect.map75 == pytest.approx(1)
    assert list(perfect.per_class.values()) == pytest.approx([1] * len(perfect.per_class))
    assert len(perfect.per_class) >= 3
    nothing = evaluate(Oracle([NOTHING] * 10), split)
    assert (nothing.map, nothing.map50, nothing.mar_100) == (0, 0, 0)


def test_hand_made_boxes_give_the_precision_worked_out_by_hand(tmp_path):
    """Two boxes; one matched at an IoU just below 0.8, one missed: AP is 51/101 up to 0.75, else 0."""
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "images/a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 200, "height": 100}],
        "annotations": [
            {"id": 0, "image_id": 5, "category_id": 3, "bbox": [10, 10, 50, 40]},
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [100, 10, 50, 40]},
        ],
        "categories": [{"id": 0, "name": "unused"}, {"id": 3, "name": "cell"}],
    }
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(content))
    split = open_data(tmp_path, "val", Resize(50, 100))
    detected = answer([[5, 5, 30, 20.999]], [0.7], [2])  # stored: x 10 to 60, y 10 to 41.998, so IoU 0.79995
    metrics = evaluate(Oracle([detected]), split)
    assert metrics.map50 == pytest.approx(51 / 101)
    assert metrics.map75 == pytest.approx(51 / 101)
    assert metrics.map == pytest.approx(51 / 101 * 6 / 10)
    assert metrics.mar_100 == pytest.approx(0.5 * 6 / 10)
    assert np.isnan(metrics.map_small)
    assert metrics.per_class == {"cell": metrics.map}
    content = metrics.to_dict()
    assert content["images"] == 1
    assert "map_small" not in content["metrics"]
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_crowd_swallows_detections_instead_of_counting_as_missed(tmp_path):
    folder = make_shapes(tmp_path / "set", 0, train=0, val=1, size=96)
    file = folder / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [40, 40, 50, 50], "area": 2500, "iscrowd": 1},
    ]
    file.write_text(json.dumps(content))
    split = open_data(folder, "val")
    inside = answer([[5, 5, 25, 25], [45, 45, 60, 60]], [0.5, 0.9], [1, 1])
    assert evaluate(Oracle([inside]), split).map == pytest.approx(1)


def test_a_subset_is_the_first_images_alone(shapes):
    split = open_data(shapes, "val")
    oracle = Oracle([truth(split, index) for index in range(4)])
    metrics = evaluate(oracle, split, batch_size=3, images=4)
    assert metrics.images == 4
    assert metrics.map == pytest.approx(1)
    assert [len(sizes) for sizes, _, _ in oracle.calls] == [3, 1]
    assert evaluate(Oracle([NOTHING] * 10), split, images=1000).images == 10


def test_every_modules_mode_comes_back_and_nothing_is_printed(shapes, capsys):
    split = open_data(shapes, "val")
    oracle = Oracle([NOTHING] * 20).train()
    oracle.inner.eval()
    evaluate(oracle, split)
    assert (oracle.training, oracle.inner.training) == (True, False)
    assert {(training, gradients) for _, training, gradients in oracle.calls} == {(False, False)}
    broken = Oracle([]).train()
    with pytest.raises(ModelError):
        evaluate(broken, split)
    assert broken.training
    assert capsys.readouterr() == ("", "")


def test_without_boxes_there_is_nothing_to_score(tmp_path):
    folder = make_shapes(tmp_path / "set", 0, train=0, val=2, size=96)
    file = folder / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    last = content["images"][-1]["id"]
    content["annotations"] = [thing for thing in content["annotations"] if thing["image_id"] == last]
    file.write_text(json.dumps(content))
    oracle = Oracle([NOTHING] * 2)
    with pytest.raises(DataError, match=r"no boxes in its first 1 images; use 2 or more \(--proxy-images"):
        evaluate(oracle, open_data(folder, "val"), images=1)
    file.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(DataError, match="val has no boxes in any of its 2 images; add them") as caught:
        evaluate(oracle, open_data(folder, "val"))
    assert "proxy" not in str(caught.value)
    assert not oracle.calls, "it is refused before the detector runs"


def test_an_untrained_detector_is_scored(shapes):
    small = {"min_size": 64, "max_size": 64, "fpn_channels": 32, "returned_layers": [2, 3]}
    model, _ = load_dense("fcos_resnet18_fpn", small, 6)
    metrics = evaluate(model, open_data(shapes, "val", resize_rule(model)), images=3, amp=True)
    assert 0 <= metrics.map < 0.1


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared (BCCD and its detector) is not here")
def test_the_bccd_detector_finds_blood_cells():
    """All of val gives 0.4627, as its README says; here the first eight images, to be quick."""
    model, spec = load_dense(
        "retinanet_resnet18_fpn",
        {"min_size": 192, "max_size": 256},
        weights=SHARED / "models/retinanet_resnet18_bccd.safetensors",
    )
    split = open_data(SHARED / "data/bccd", "val", resize_rule(model), strict=True)
    assert (len(split), split.num_classes, split.most_common_size) == (87, spec.num_classes, (192, 256))
    assert split.categories == {1: "RBC", 2: "WBC", 3: "Platelets"}
    assert len(open_data(SHARED / "data/bccd", "train", strict=True)) == 205
    assert len(open_data(SHARED / "data/bccd", "test", strict=True)) == 72
    metrics = evaluate(model, split, images=8, batch_size=4)
    assert 0.40 < metrics.map < 0.60
    assert metrics.per_class["WBC"] > 0.6


def test_classes_of_the_same_name_with_boxes_are_refused(shapes):
    file = shapes / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    for category in content["categories"]:
        category["name"] = "shape"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match='both named "shape"'):
        open_data(shapes, "val")


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [NOTHING] * 2,
        [{"boxes": 1}] * 10,
        torch.zeros(10, 4),
        {"boxes": []},
        None,
        [{**NOTHING, "boxes": torch.zeros(0, 5)}] * 10,
        [{**NOTHING, "scores": torch.zeros(1)}] * 10,
        [{**NOTHING, "labels": [1]}] * 10,
    ],
)
def test_a_model_that_answers_otherwise_is_refused(shapes, wrong):
    class Other(nn.Module):
        def forward(self, images):
            return wrong

    with pytest.raises(
        ModelError, match=r"in eval mode Other must return one {boxes, scores, labels}"
    ) as error:
        evaluate(Other(), open_data(shapes, "val"), batch_size=10)
    assert "\n" not in str(error.value)


def test_a_detector_is_evaluated_as_it_is_and_left_as_it_was(demo_settings):
    """Without a copy: modes, strides and the tensors' memory are those from before, after a failure too."""
    task = load_task(make_config(**demo_settings))
    model = task.model.train()
    model.backbone.body.bn1.eval()
    copied = copy.deepcopy(model).eval()

    def state():
        tensors = [(t.data_ptr(), t.stride(), t.sum().item()) for t in model.state_dict().values()]
        return tensors, [module.training for module in model.modules()]

    before = state()
    rows = detect(model, task.val, range(4), batch_size=2)
    assert state() == before
    for index in range(4):
        with torch.no_grad():
            (output,) = copied(task.val.batch([index])[0])
        ours = rows[rows[:, IMAGE] == task.val.image_ids[index]]
        assert sorted(ours[:, SCORE]) == pytest.approx(sorted(output["scores"].tolist()), abs=1e-4)
    with pytest.raises(IndexError):
        detect(model, task.val, [10_000])
    assert state() == before
