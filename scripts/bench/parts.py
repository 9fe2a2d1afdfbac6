"""What benches share that can be stopped: each part's result is one JSON file, done once."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoprune.config import Config, make_config
from autoprune.data import demo_detector
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import pixel_resizing
from autoprune.errors import DataError
from autoprune.files import write_text
from autoprune.task.pruning_task import PruningTask

Result = dict[str, Any]


def once(file: Path, work: Callable[[], Mapping[str, Any]]) -> Result:
    """The result in ``file``, after doing the work if it is not there yet."""
    if not file.exists():
        print(f"{file.stem} …", file=sys.stderr, flush=True)
        write(file, work())
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    return result


def guard(file: Path, settings: Mapping[str, Any]) -> None:
    """Refuses to mix results of different settings in one folder."""
    given = json.loads(json.dumps(settings))
    if file.exists() and (stored := json.loads(file.read_text(encoding="utf-8"))) != given:
        differing = next(name for name in {**stored, **given} if stored.get(name) != given.get(name))
        raise SystemExit(
            f"{file.parent} holds results with {differing} {stored.get(differing)!r}, not "
            f"{given.get(differing)!r}; give another --out"
        )
    write(file, given)


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def score_test(model: Any, task: PruningTask) -> float | None:
    """MAP on the test images, or ``None`` where the data has none."""
    try:
        test = open_data(task.config.data, "test", pixel_resizing(task.model))
    except DataError:
        return None
    return evaluate(model, test, task.device, batch_size=task.config.batch_size).map


def score_dense(task: PruningTask) -> Result:
    """MAP of the dense detector on validation and test images, and its costs."""
    return {"val": score_val(task, task.model), "test": score_test(task.model, task), **task.costs({})}


def changed(config: Config, **changes: Any) -> Config:
    """The same settings but for ``changes``; what was left to its default still is."""
    fields = {name: getattr(config, name) for name in config.model_fields_set}
    return make_config(**{**fields, **changes})


def demo_settings(folder: Path, test: int = 0) -> dict[str, Any]:
    """Fields of `Config` for the demo's detector and generated images, which are written to ``folder``."""
    data = make_shapes(
        folder, demo_detector.DATA_SEED, train=1200, val=192, test=test, size=demo_detector.IMAGE_SIZE
    )
    model = {"model": demo_detector.MODEL.name, "model_arguments": demo_detector.MODEL.arguments}
    return {**model, "data": str(data), "weights": str(demo_detector.WEIGHTS)}


def score_val(task: PruningTask, model: Any) -> float:
    """MAP on the validation images."""
    return evaluate(model, task.val, task.device, batch_size=task.config.batch_size).map


def add_demo_or_data(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which detector and data: by default the demo's detector on generated images."""
    parser.add_argument(
        "--data", type=Path, help="COCO data; default: generated images and the demo's detector"
    )
    parser.add_argument("--weights")
    parser.add_argument("--model", default="retinanet_resnet18_fpn")
    parser.add_argument("--model-arguments", default="{}", help="JSON")


def add_detector(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which detector and data: by default the one that was trained on BCCD."""
    parser.add_argument("--data", default="../shared/data/bccd")
    parser.add_argument("--weights", default="../shared/models/retinanet_resnet18_bccd.safetensors")
    parser.add_argument("--model", default="retinanet_resnet18_fpn")
    parser.add_argument("--model-arguments", default='{"min_size": 192, "max_size": 256}', help="JSON")
