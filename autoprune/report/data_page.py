"""One HTML page of a data set: a few pictures with their boxes, to see whether these lie rightly."""

import html
from collections.abc import Sequence
from pathlib import Path

from autoprune.data.coco import Split
from autoprune.data.samples import true_boxes
from autoprune.files import write_text
from autoprune.images.decode import UPRIGHT
from autoprune.report.samples import encode

PICTURES = 3
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")
STYLE = """body { font: 16px system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; }
svg { display: block; max-width: 100%; height: auto; }
text { font: 12px system-ui, sans-serif; paint-order: stroke; stroke: #fff; stroke-width: 3px; }
"""


def write_data_page(file: Path, title: str, lines: Sequence[str], split: Split) -> None:
    """Writes the page, which opens anywhere without network.

    Args:
        file: the HTML file.
        title: what the data is.
        lines: what else to say of it.
        split: its pictures are the first, the middle and the last image with boxes.

    Raises:
        DataError: an image can't be decoded.
        RunError: the file can't be written.
    """
    boxed = [index for index in range(len(split)) if true_boxes(split, index)] or list(range(len(split)))
    last = len(boxed) - 1
    chosen = dict.fromkeys(boxed[round(last * place / (PICTURES - 1))] for place in range(PICTURES))
    pictures = "\n".join(_figure(split, index) for index in chosen)
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    write_text(
        file,
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n<ul>\n{items}\n</ul>\n{pictures}\n</html>\n",
    )


def _figure(split: Split, index: int) -> str:
    height, width = split.stored_sizes[index]
    picture = encode(split.files[index], (height, width), split.views.get(index, UPRIGHT))
    scale_x, scale_y = picture.width / width, picture.height / height
    names = list(split.categories.values())
    shapes = []
    for thing in true_boxes(split, index):
        x1, y1, x2, y2 = thing["box"]
        color = COLORS[names.index(thing["label"]) % len(COLORS)]
        x, y = x1 * scale_x, y1 * scale_y
        shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{(x2 - x1) * scale_x:.1f}" '
            f'height="{(y2 - y1) * scale_y:.1f}" fill="none" stroke="{color}" stroke-width="2"/>'
            f'<text x="{x + 3:.1f}" y="{max(y - 4, 12):.1f}" fill="{color}">'
            f"{html.escape(thing['label'])}</text>"
        )
    return (
        f'<figure><svg viewBox="0 0 {picture.width} {picture.height}" width="{picture.width}" '
        f'height="{picture.height}"><image href="{picture.url}" width="{picture.width}" '
        f'height="{picture.height}"/>{"".join(shapes)}</svg>'
        f"<figcaption>{html.escape(split.files[index].name)}, {width}x{height}</figcaption></figure>"
    )
