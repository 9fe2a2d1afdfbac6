"""Labels that do not fit a detector are noticed; the detector knows the truth, or nearly."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from autoprune import progress
from autoprune.data.coco import open_data
from autoprune.data.label_check import check_labels
from autoprune.errors import ConfigError, ModelError

from .conftest import box, write_set

NAMES = ("a", "b", "c")


class Knowing(nn.Module):
    """Detects the true boxes in order of the images, with labels by ``mapping``; moves them by ``noise``."""

    def __init__(self, split, chosen, mapping, noise=0.0, nothing=False):
        super().__init__()
        self.outputs = [split.get(index)[1] for index in chosen]
        self.mapping, self.noise, self.nothing, self.next = mapping, noise, nothing, 0

    def __deepcopy__(self, memo):
        return self

    def forward(self, images):
        results = []
        for _ in images:
            target = self.outputs[self.next % len(self.outputs)]
            random = np.random.default_rng(self.next)
            self.next += 1
            boxes = (
                target["boxes"]
                + torch.from_numpy(random.normal(0, 1, (len(target["boxes"]), 1))) * self.noise
            )
            labels = torch.tensor(
                [self.mapping.get(int(label), 0) for label in target["labels"]], dtype=torch.int64
            )
            keep = slice(0, 0) if self.nothing else slice(None)
            scores = torch.linspace(0.9, 0.5, len(boxes))
            results.append({"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]})
        return results


@pytest.fixture
def split(tmp_path):
    """Twelve images with a box of each class."""
    boxes = [
        box(10 * image + number, image, (3 + 11 * (number - 1), 4 + image, 9, 9), category=number)
        for image in range(1, 13)
        for number in (1, 2, 3)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    names = tuple(f"{number}.png" for number in range(12))
    return open_data(write_set(tmp_path, boxes, names=names, categories=categories), "val")


def knowing(split, mapping, **more):
    return Knowing(split, range(len(split)), mapping, **more)


def said(*arguments, **more):
    console = Console(record=True, width=1000, file=io.StringIO())
    with progress.show(console):
        check_labels(*arguments, **more)
    return console.export_text()


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0])
def test_labels_that_fit_pass(split, noise):
    check_labels(knowing(split, {1: 1, 2: 2, 3: 3}, noise=noise), split, 4)


@pytest.mark.parametrize(
    ("mapping", "option"),
    [
        ({1: 2, 2: 3, 3: 4}, "a=2,b=3,c=4"),
        ({1: 0, 2: 1, 3: 2}, "a=0,b=1,c=2"),
        ({1: 2, 2: 1, 3: 3}, "b=1,a=2,c=3"),
        ({1: 3, 2: 1, 3: 2}, "b=1,c=2,a=3"),
        ({1: 1, 2: 7, 3: 3}, "a=1,c=3,b=7"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_those_that_do(split, mapping, option):
    with pytest.raises(ConfigError, match=f"give --labels {option} ") as error:
        check_labels(knowing(split, mapping, noise=0.5), split, 8)
    assert "--labels a=1,b=2,c=3" in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_that_the_user_gave_are_kept(split):
    assert "the labels do not fit the detector" in said(
        knowing(split, {1: 2, 2: 1, 3: 3}), split, 4, given=True
    )


def test_one_class_that_is_taken_for_another_is_no_wrong_mapping(split):
    check_labels(knowing(split, {1: 1, 2: 1, 3: 3}), split, 4)


def test_a_detector_that_finds_nothing(split):
    with pytest.raises(ModelError, match="finds nothing on 12 images"):
        check_labels(knowing(split, {}, nothing=True), split, 4, must_find=True)
    check_labels(knowing(split, {}, nothing=True), split, 4)


def test_images_without_boxes_say_nothing(tmp_path):
    check_labels(nn.Identity(), open_data(write_set(tmp_path, []), "val"), 2)


def test_a_category_that_the_split_does_not_list_keeps_its_label(split):
    more = split.relabeled({1: "a", 2: "b", 3: "c", 4: "d"})
    check_labels(knowing(split, {1: 1, 2: 2, 3: 3}), more, 5)
    with pytest.raises(ConfigError, match="give --labels b=1,a=2,c=3,d=4 "):
        check_labels(knowing(split, {1: 2, 2: 1, 3: 3}), more, 5)


def rare(folder, counts):
    """Images of three places; category n, named after the n-th letter, has ``counts[n - 1]`` boxes."""
    numbers = [number for number, count in enumerate(counts, 1) for _ in range(count)]
    boxes = [
        box(place + 1, place // 3 + 1, (3 + 11 * (place % 3), 4, 9, 9), category=number)
        for place, number in enumerate(numbers)
    ]
    categories = [{"id": number, "name": "abcde"[number - 1]} for number in range(1, 6)]
    names = tuple(f"{number}.png" for number in range(len(numbers) // 3 + 1))
    return open_data(write_set(folder, boxes, names=names, categories=categories), "val")


REVERSED = {number: 6 - number for number in range(1, 6)}


@pytest.mark.parametrize(
    ("counts", "undecided"),
    [((3, 9, 9, 9, 3), None), ((3, 9, 9, 9, 0), "e"), ((1, 9, 1, 9, 1), None), ((3, 9, 0, 9, 3), "c")],
)
def test_few_boxes_decide_where_other_classes_have_many(tmp_path, counts, undecided):
    split = rare(tmp_path, counts)
    with pytest.raises(ConfigError, match="give --labels e=1,d=2,c=3,b=4,a=5 ") as error:
        check_labels(knowing(split, REVERSED), split, 6)
    text = str(error.value)
    assert (f"(undecided, as no box shows their labels: {undecided})" in text) == (undecided is not None)


def test_classes_that_no_box_decides_keep_their_labels_and_are_named(tmp_path):
    split = rare(tmp_path, (0, 9, 9, 9, 0))
    with pytest.raises(ConfigError, match="give --labels a=1,d=2,c=3,b=4,e=5 ") as error:
        check_labels(knowing(split, REVERSED), split, 6)
    assert "no box shows their labels: a, e)" in str(error.value)


def test_few_boxes_alone_decide_nothing(tmp_path):
    split = rare(tmp_path, (2, 9, 9, 9, 2))
    assert said(knowing(split, {1: 5, 2: 2, 3: 3, 4: 4, 5: 1}), split, 6) == ""


@pytest.mark.parametrize("given", [False, True])
def test_a_detector_that_is_poor_with_every_mapping_tells_nothing_about_labels(split, given):
    class Shrunk(Knowing):
        """Overlaps of 0.6, so an AP of 0.3 at most, below boxes of nothing that take the precision down."""

        def forward(self, images):
            results = super().forward(images)
            for each in results:
                each["boxes"][:, 3] -= 0.4 * (each["boxes"][:, 3] - each["boxes"][:, 1]) - 0.1
                each["boxes"] = torch.cat([torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(90, 1), each["boxes"]])
                each["scores"] = torch.cat([torch.full((90,), 0.99), each["scores"]])
                each["labels"] = torch.cat([each["labels"].repeat(30), each["labels"]])
            return results

    mapping = {1: 2, 2: 1, 3: 3}
    text = said(Shrunk(split, range(len(split)), mapping), split, 4, given=given, must_find=True)
    assert "the detector is poor with every mapping of labels on 12 images of val (mAP " in text
    height, width = split.sizes[0]
    assert "with the labels" not in text  # fitting ones gain less than a point
    assert f", at {height}x{width} pixels): its input size, weights or data may be others" in text
    assert "press Ctrl-C and give --model-arguments" in text
    assert "--labels" not in text


def test_other_labels_of_a_poor_detector_are_named_where_they_gain_much(split):
    class Low(Knowing):
        """Finds two of three classes, with overlaps of 0.57: an AP of 0.2, 0.2 and 0."""

        def forward(self, images):
            results = super().forward(images)
            for each in results:
                each["boxes"][:, 3] -= 0.43 * (each["boxes"][:, 3] - each["boxes"][:, 1])
            return [{name: values[:2] for name, values in each.items()} for each in results]

    def poor(mapping):
        text = said(Low(split, range(len(split)), mapping), split, 4, given=True)
        assert "the detector is poor with every mapping" in text
        return text

    assert "(mAP 0.0, 13.3 with the labels 1 b, 2 a" in poor({1: 2, 2: 1, 3: 3})
    assert "(mAP 13.3, at" in poor({1: 1, 2: 2, 3: 3})
