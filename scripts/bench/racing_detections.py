"""The kept detections of `racing.py`: those of a search's trials at each rung, on all validation images."""

import argparse
import json
from dataclasses import dataclass

import numpy as np

from autoprune.config import Config, make_config
from autoprune.data import demo_detector
from autoprune.data.coco import Split
from autoprune.data.detections import detect
from autoprune.data.evaluators import Detections
from autoprune.data.shapes import make_shapes
from autoprune.importance import load as load_scores
from autoprune.run.directory import RunDirectory
from autoprune.search.pipeline import search
from autoprune.space.file import SpaceFile
from autoprune.space.resolve import resolve
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import load_task

SEARCH_IMAGES = 16  # what the search itself evaluates on; its policies are then evaluated on all


@dataclass(frozen=True)
class Kept:
    """One trial of the search that was made beforehand.

    Attributes:
        origin: the warm start's, or ``"sampler"``.
        gflops: of the policy.
        detections: at each rung, on all validation images.
    """

    origin: str
    gflops: float
    detections: tuple[Detections, ...]


def keep_detections(given: argparse.Namespace) -> tuple[Config, Split, list[Kept]]:
    """Searches, takes every policy up all rungs, and keeps the detections; what is there is not redone."""
    config = config_of(given)
    result = search(config)
    run = RunDirectory(config.out)
    config = config.model_copy(update={"rungs": tuple(given.rungs)})
    task = load_task(config)
    importance = load_scores(run.importance_file, config.criterion)
    assert importance is not None
    space = resolve(SpaceFile.load(run.space_file), task.graph, importance)
    evaluator = PolicyEvaluator(task, space, importance)
    kept = []
    for record in (record for record in result.records if record.counts):
        files = [given.out / f"trial-{record.number:02d}-{rung}.npz" for rung in range(len(given.rungs))]
        if not files[-1].exists():
            state = None
            for rung, file in enumerate(files):
                _, state = evaluator.evaluate(record.widths, rung, state)
                detected = detect(state.model, task.val, range(len(task.val)), batch_size=16)
                with (part := file.with_suffix(".part")).open("wb") as stream:
                    np.savez_compressed(stream, rows=detected)
                part.rename(file)
        stored = tuple(np.load(file)["rows"] for file in files)
        kept.append(Kept(record.origin, record.metrics["gflops"], stored))
    return config, task.val, kept


def config_of(given: argparse.Namespace) -> Config:
    """The settings of the search: the demo's detector on generated images, or what the flags name."""
    if given.data is None:
        data = make_shapes(
            given.out / "data", demo_detector.DATA_SEED, 1200, given.images, size=demo_detector.IMAGE_SIZE
        )
        model, arguments, weights = (
            demo_detector.MODEL.name,
            demo_detector.MODEL.arguments,
            demo_detector.WEIGHTS,
        )
    else:
        data, model, arguments, weights = (
            given.data,
            given.model,
            json.loads(given.model_arguments),
            given.weights,
        )
    return make_config(
        model=model, model_arguments=arguments, data=str(data), weights=str(weights), seed=given.seed,
        out=given.out / "search", budget_gflops=(given.budget,), trials=given.trials, rungs=(0,), confirm=0,
        track=(), proxy_images=SEARCH_IMAGES, threads=1,
        criterion="taylor", curves=False, importance_images=32, reconstruct_images=8,
    )  # fmt: skip
