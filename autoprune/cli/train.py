"""`autoprune train`: trains a dense baseline, with the loop that also recovers pruned detectors."""

import json
from pathlib import Path

from autoprune.cli.detectors import build_dense, open_split, resolve
from autoprune.cli.settings import data_flags, with_config
from autoprune.cli.terminal import tell, working
from autoprune.config import Config
from autoprune.errors import RunError
from autoprune.files import write_text
from autoprune.progress import command_line
from autoprune.report.tables import points
from autoprune.run.names import BASELINE_CHECKPOINT_FILE, LOCK_FILE, METRICS_FILE, WEIGHTS_FILE

DEFAULT_OUT = "runs/train"


@with_config(
    "Detector",
    "Data",
    "Training",
    "Machine",
    "out",
    but=(
        "distill",
        "distill_weighting",
        "distill_head",
        "distill_logits",
        "regrow_rounds",
        "reconstruct_images",
    ),
    useless=("input_size", "recalibration_images"),
    defaults={"out": DEFAULT_OUT},
)
def train(config: Config) -> None:
    """Train a dense detector and evaluate it; writes model.safetensors and metrics.json to --out.

    An interrupted training resumes from its last checkpoint, with its own settings where none are given; a
    checkpoint is written every 5 to 30 seconds.
    """
    from autoprune.data.coco import check_same_classes
    from autoprune.data.evaluate import check_boxes, evaluate
    from autoprune.detectors import resize_rule, save_state
    from autoprune.detectors.class_names import header_of
    from autoprune.run.directory import refuse_other_folder
    from autoprune.run.lock import locked
    from autoprune.run.resume import say_own, training_settings
    from autoprune.task.checks import check_batch_size, check_num_classes, pick_device, warn_enlarged
    from autoprune.training import TrainSettings, distributed
    from autoprune.training import train as fit

    device = pick_device(config)
    weights, metrics_file = config.out / WEIGHTS_FILE, config.out / METRICS_FILE
    checkpoint = config.out / BASELINE_CHECKPOINT_FILE
    if config.out.exists() and not config.out.is_dir():
        raise RunError(f"{config.out} is not a folder; choose another --out (YAML: out)")
    refuse_other_folder(config.out, own=(WEIGHTS_FILE, BASELINE_CHECKPOINT_FILE))
    for file in (weights, metrics_file):
        if file.exists() and not checkpoint.exists():
            raise RunError(f"{file} already exists; choose another --out (YAML: out)")
    with (
        distributed.process_group(),
        distributed.first_only(locked(config.out, LOCK_FILE)),
        working() as console,
    ):
        resumed = training_settings(config, checkpoint)
        say_own(config, resumed, config.out)
        config = resumed
        detector = resolve(None, config)
        model, spec = build_dense(detector, config, fresh_head=True)
        training = open_split(config, "train", model)
        validation = open_split(config, "val", model, training.categories)
        check_same_classes(training, validation)
        for split in (training, validation):
            check_boxes(split)
        check_num_classes(config.num_classes, training.num_classes)
        if not checkpoint.exists():  # version 0.1.0 began trainings with larger batches
            check_batch_size(config.batch_size, len(training))
        if config.num_classes is None and training.num_classes != spec.num_classes:
            # the heads get the data's classes; weights, if any are given, fill all but those heads
            sized = config.model_copy(update={"num_classes": training.num_classes})
            model, spec = build_dense(detector, sized, fresh_head=True)
        console.print(training.labels_line, highlight=False, markup=False)
        height, width = training.most_common_size
        warn_enlarged(training, resize_rule(model), spec.arguments)
        console.print(
            f"training {spec.name} for {config.steps} steps of {config.batch_size} images "
            f"({len(training)} in all, most of {height}x{width} pixels when resized, {spec.num_classes} "
            f"classes with the background) on {device}"
        )
        settings = TrainSettings.from_config(config)
        result = fit(model, training, settings, device, checkpoint=checkpoint, what="training")
        if distributed.rank() > 0:
            return
        metrics = evaluate(result.model, validation, device)
        save_state(result.model, weights, metadata=header_of(training.categories))
        content = {
            "model": spec.model_dump(mode="json"),
            "labels": training.categories,
            "steps": config.steps,
            "val": metrics.to_dict(),
        }
        write_text(metrics_file, json.dumps(content, indent=2) + "\n")
        checkpoint.unlink(missing_ok=True)
        tell(console, f"mAP {points(metrics.map)} on val; wrote {weights} and {metrics_file}")
        if metrics.map > 0:
            tell(console, f"next: {_next(config, weights)}")
        else:
            tell(
                console,
                "it finds no object of val, and there is nothing to prune yet: train for more --steps",
            )


def _next(config: Config, weights: Path) -> str:
    """The next command for these weights, with the flags that differ from the defaults."""
    words: list[object] = ["search", "--weights", weights]
    if "model" in config.model_fields_set:
        words += ["--model", config.model]
    if config.model_arguments:
        words += ["--model-arguments", json.dumps(config.model_arguments)]
    return command_line(*words, *data_flags(config), "--budget-gflops", "50%")
