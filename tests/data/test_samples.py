import json

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.data.coco import open_data
from autoprune.data.samples import IMAGES, MIN_SCORE, save_samples
from autoprune.data.shapes import make_shapes
from autoprune.detectors import Resize


class Shifted(nn.Module):
    """Finds every true box, moved to the right, with rising scores; knows an image by its mean."""

    def __init__(self, split, pixels):
        super().__init__()
        self.answers = {}
        for place in range(len(split)):
            image, target = split.get(place)
            self.answers[round(image.float().mean().item(), 3)] = (target["boxes"] + pixels, target["labels"])

    def forward(self, images):
        outputs = []
        for image in images:
            boxes, labels = self.answers[round((image * 255).mean().item(), 3)]
            scores = torch.linspace(MIN_SCORE / 2, 0.9, len(labels))
            outputs.append({"boxes": boxes, "scores": scores, "labels": labels})
        return outputs


@pytest.fixture
def split(tmp_path):
    data = make_shapes(tmp_path / "set", 0, train=1, val=8, size=96)
    file = data / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    empty = content["images"][1]["id"]
    content["annotations"] = [thing for thing in content["annotations"] if thing["image_id"] != empty]
    file.write_text(json.dumps(content))
    return open_data(data, "val", Resize(min_size=48, max_size=48))  # the detector sees half the size


def test_boxes_are_those_of_each_detector_in_stored_pixels(split, tmp_path):
    save_samples(tmp_path, {"dense": Shifted(split, 0.0), "pruned": Shifted(split, 2.0)}, split)
    content = json.loads((tmp_path / "samples.json").read_text())
    assert content["split"] == "val"
    assert len(content["images"]) == IMAGES
    for image in content["images"]:
        assert (image["height"], image["width"]) == (96, 96)
        assert image["truth"], "an image without boxes shows nothing"
        boxes = {thing["label"]: [] for thing in image["truth"]}
        for thing in image["truth"]:
            boxes[thing["label"]].append(thing["box"])
        for name, shift in (("dense", 0.0), ("pruned", 4.0)):  # two pixels are four of the stored ones
            detections = image["found"][name]
            assert len(detections) == sum(
                1 for place in range(len(image["truth"])) if place
            )  # not the weakest
            assert [thing["score"] for thing in detections] == sorted(
                (t["score"] for t in detections), reverse=True
            )
            for thing in detections:
                moved = [value - shift for value in thing["box"]]
                assert any(moved == pytest.approx(box, abs=0.11) for box in boxes[thing["label"]])


def test_a_detector_of_another_input_size_gets_the_images_at_its_own(split, tmp_path):
    larger = split.resized(Resize(min_size=96, max_size=96))
    models = {"dense": Shifted(split, 0.0), "pruned": Shifted(larger, 0.0)}  # they know only their own images
    save_samples(tmp_path, models, split, splits={"pruned": larger})
    shown = 0
    for image in json.loads((tmp_path / "samples.json").read_text())["images"]:
        dense, pruned = (sorted(t["box"] for t in image["found"][name]) for name in ("dense", "pruned"))
        assert np.allclose(dense, pruned, atol=0.11)
        shown += len(dense)
    assert shown


def test_a_split_with_fewer_images_gives_those_it_has(split, tmp_path):
    save_samples(tmp_path, {"dense": Shifted(split, 0.0)}, split, images=100)
    assert len(json.loads((tmp_path / "samples.json").read_text())["images"]) == 7
