"""The page of `doctor --data`: boxes lie on the pixels that they were drawn around."""

import base64
import io
import json
import re

import numpy as np
from PIL import Image

from autoprune.data.coco import open_data
from autoprune.report.data_page import write_data_page


def make(folder, name="<b>&\"cat'"):
    """Four pictures of 100x200 with one bright box each; the second has none."""
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    images, boxes = [], []
    for number in range(1, 5):
        pixels = np.zeros((100, 200, 3), np.uint8)
        if number != 2:
            x, y, width, height = 10 * number, 5 * number, 50, 20 + number
            pixels[y : y + height, x : x + width] = 255
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, width, height]})
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 100, "width": 200})
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": name}]}
    (folder / "annotations/instances_val.json").write_text(json.dumps(content))
    return open_data(folder, "val")


def test_three_pictures_have_their_boxes_where_the_objects_are(tmp_path):
    write_data_page(tmp_path / "page.html", "a <set>", ["odd: 1 < 2"], make(tmp_path))
    text = (tmp_path / "page.html").read_text()
    assert "<h1>a &lt;set&gt;</h1>" in text
    assert "odd: 1 &lt; 2" in text
    assert '<b>&"cat' not in text
    assert "&lt;b&gt;" in text
    figures = re.findall(r"<figure>.*?</figure>", text)
    assert [name for name in ("1.png", "2.png", "3.png", "4.png") if f"<figcaption>{name}" in text] == [
        "1.png", "3.png", "4.png",
    ]  # fmt: skip
    assert len(figures) == 3
    for figure in figures:
        jpeg = base64.b64decode(re.search(r"base64,([^\"]+)", figure)[1])
        rows, columns = np.nonzero(np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")) > 127)
        shown = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
        (rectangle,) = re.findall(r'<rect x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', figure)
        assert np.abs(np.array(rectangle, float) - shown).max() <= 1.5


def test_a_set_without_boxes_has_pictures_all_the_same(tmp_path):
    split = make(tmp_path)
    split.coco.imgToAnns.clear()
    write_data_page(tmp_path / "page.html", "empty", [], split)
    assert (tmp_path / "page.html").read_text().count("<figure>") == 3
