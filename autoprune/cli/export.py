"""`autoprune export`: writes a recovered detector to a folder of its own, and reads it back to check it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoprune.cli.detectors import config_of_run, no_policy, open_split, with_data_of
from autoprune.cli.settings import ANY_DATA, PANELS, data_flags, parse_size, refuse_useless, with_config
from autoprune.cli.terminal import tell, working
from autoprune.config import Config
from autoprune.errors import AutopruneError, ConfigError, RunError
from autoprune.fields import VENDORS
from autoprune.files import is_empty
from autoprune.progress import command_line
from autoprune.report.entries import recovered_map, recovered_metrics

if TYPE_CHECKING:
    from torch import nn

    from autoprune.export.formats import Images

Format = Literal["safetensors", "onnx", "pt2", "ultralytics", "transformers"]


@with_config(
    "Data",
    "weights",
    "weights_key",
    "threads",
    described={
        "data": "that of the detector's run",
        "val_fraction": "the run's",
        "labels": "the detector's",
        "weights": "the folder's; else those of the same pruned detector, trained on elsewhere",
    },
)
def export(
    config: Config,
    flags: set[str],
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|DIR", help="A run directory, or the folder of one recovered detector."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write; it must not exist.")],
    trial: Annotated[
        int | None,
        typer.Option(
            "--trial",
            metavar="N",
            help="Trial of a run; default: the recovered one with the best mAP.",
        ),
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="File for other runtimes beside policy and weights: onnx, or pt2 (torch.export, raw heads "
            "only), either compared with the detector on real images; or a detector's own library's.",
        ),
    ] = "safetensors",
    raw_heads: Annotated[
        bool,
        typer.Option(
            "--raw-heads",
            help="For one-stage detectors and most of other libraries: a fixed input size and dense outputs, "
            "which every runtime supports; decode_raw_heads.py, in autoprune/runtimes, decodes them.",
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="HxW", help="Input size of the raw heads; default: the policy's input_size."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Compare on the images of a folder instead of --data; there is no mAP then.",
        ),
    ] = None,
    parity_images: Annotated[
        int, typer.Option("--parity-images", min=1, help="Most images to compare on.")
    ] = 64,
) -> None:
    """Write a recovered detector to a folder: policy, weights, model card, and a file for other runtimes.

    What is written is read back, and its outputs are compared with the detector's.
    """
    from autoprune.export import save_detector
    from autoprune.export.card import render, write_card
    from autoprune.export.folder import load_with_policy
    from autoprune.export.formats import write_onnx, write_raw, write_vendor
    from autoprune.export.pretrained import LIBRARY as PRETRAINED
    from autoprune.export.pretrained import write_pretrained
    from autoprune.files import new_folder, write_text
    from autoprune.run.names import CARD_FILE, LATENCY_FILE, METRICS_FILE, POLICY_FILE, WEIGHTS_FILE
    from autoprune.runtimes.sessions import need_runtime
    from autoprune.task.checks import pick_device

    pick_device(config)  # for --threads
    if format == "onnx":
        need_runtime("onnxruntime")
    raw_heads = raw_heads or format == "pt2"
    needs_images = format in ("onnx", "pt2")
    _refuse_combinations(flags, needs_images, raw_heads)
    is_detector = (source / POLICY_FILE).is_file()
    if is_detector and trial is not None:
        raise ConfigError(f"--trial chooses from a run directory, and {source} is one detector; omit it")
    folder = source if is_detector else _recovered(source, trial)
    refuse_existing(to)
    weights = config.weights if "weights" in flags else None
    if weights is None:
        refuse_useless(flags, {"weights_key"}, "without --weights; omit it")
    with working() as console:
        model, policy = load_with_policy(folder, weights, config.weights_key if weights else None)
        input_size = policy.input_size if size is None else _given_size(size, model)
        render(folder)  # raises where a file is damaged, before anything is written
        pictures = _images(folder, model, config, images, policy.labels) if needs_images else None
        with new_folder(to) as new:
            file: Path | None = None
            own: tuple[Path, ...] = ()
            if format in VENDORS and format != PRETRAINED:
                file = write_vendor(model, new, format, policy.labels, policy.input_size)
            if pictures is not None:
                if raw_heads:
                    file, parity = write_raw(model, new, pictures, parity_images, input_size, format)
                else:
                    file, parity = write_onnx(model, new, pictures, parity_images)
            if format == PRETRAINED:
                own = write_pretrained(new, model, policy)
            else:
                save_detector(new, model, policy)
            same = check_read_back(model, new, policy.input_size, str(folder), to)
            measured = [LATENCY_FILE] if weights else [METRICS_FILE, LATENCY_FILE]  # not with these weights
            for source_file in (folder / name for name in measured):
                if source_file.is_file():
                    write_text(new / source_file.name, source_file.read_text(encoding="utf-8"))
            write_card(new)
        more = [path.name for path in ((file, *own) if file else own)]
        names = [POLICY_FILE, WEIGHTS_FILE, *more, CARD_FILE]
        origin = f"{folder} with the weights of {weights}" if weights else folder
        tell(console, f"wrote {to}: {', '.join(names[:-1])} and {names[-1]} of {origin}")
        console.print(same)
        if file is not None and pictures is not None:
            tell(console, f"{file.name}: {parity}")
        run = config_of_run(folder)
        data = data_flags(config if run is None or "data" in flags else with_data_of(run, config))
        following = command_line("eval", to, *(data or ANY_DATA))
        tell(console, f"next: {following}, or autoprune.load({str(to)!r}) in Python")


def _refuse_combinations(flags: set[str], needs_images: bool, raw_heads: bool) -> None:
    """Refuses options that would do nothing beside others.

    Args:
        flags: names of the options that were given.
        needs_images: whether the format has a file that is compared on images.
        raw_heads: whether that holds raw heads.

    Raises:
        ConfigError: says which, and what to do.
    """
    if raw_heads and not needs_images:
        raise ConfigError("--raw-heads needs a format that holds them; give --format onnx or --format pt2")
    if not needs_images:
        reason = "without a file to compare; give --format onnx or --format pt2 too, or omit it"
        refuse_useless(flags, {"images", "parity_images", *PANELS["Data"]}, reason)
    if "images" in flags:
        reason = "with --images, on which the file is compared; omit one of them"
        refuse_useless(flags, PANELS["Data"], reason)
    if "size" in flags and not raw_heads:
        raise ConfigError("--size is the fixed input of raw heads; give --raw-heads too, or omit it")


def check_read_back(
    model: "nn.Module", folder: Path, input_size: tuple[int, int], source: str, to: Path
) -> str:
    """Reads a written detector back; says that it computes what the one in memory does.

    Args:
        model: what was written.
        folder: that it was written to.
        input_size: height and width of a random image.
        source: where ``model`` is from, for the message.
        to: what ``folder`` will be called, for the message.

    Raises:
        AutopruneError: their outputs differ.
    """
    from autoprune.export import largest_difference, load

    if (difference := largest_difference(model, load(folder), input_size)) != 0:
        raise AutopruneError(f"{to} does not compute what {source} does: outputs differ by {difference:.3g}")
    return "read back: the outputs on a random image are identical"


def refuse_existing(folder: Path) -> None:
    """Refuses to write over a folder that holds something.

    Raises:
        RunError: the folder exists and is not empty.
    """
    if folder.exists() and not is_empty(folder):
        raise RunError(f"{folder} already exists; choose another --to")


def _given_size(size: str, model: "nn.Module") -> tuple[int, int]:
    """Height and width that --size gives.

    Raises:
        ConfigError: it is no size, or the detector takes another one alone.
    """
    from autoprune.runtimes.raw_heads import has_raw_heads, only_input

    given = parse_size(size, "--size")
    only = only_input(model) if has_raw_heads(model) else None
    if only is not None and only != given:
        raise ConfigError(f"--size {size}: this detector takes {only[0]}x{only[1]} pixels alone; omit --size")
    return given


def _images(
    folder: Path,
    model: "nn.Module",
    config: Config,
    picture_folder: Path | None,
    labels: Mapping[int, str],
) -> "Images":
    """The images to compare on: those of --images, of --data, or of the run.

    Raises:
        ConfigError: there are none of these.
        DataError: they can't be read.
    """
    from autoprune.detectors import pixel_resizing
    from autoprune.export.parity import Pictures

    if picture_folder is not None:
        return Pictures(picture_folder, pixel_resizing(model))
    if "data" not in config.model_fields_set:
        run = config_of_run(folder)
        if run is None:
            raise ConfigError(
                "the exported file is compared with the detector on real images; give --data FOLDER, or "
                "--images FOLDER for images without boxes"
            )
        config = with_data_of(run, config)
    return open_split(config, "val", model, labels if labels and config.labels is None else None)


def _recovered(run: Path, trial: int | None) -> Path:
    """The folder of a recovered trial.

    Raises:
        RunError: the run has none, or not this one, or a file of its can't be read.
        ConfigError: it is the folder of one detector, without its policy.
    """
    from autoprune.run.directory import RunDirectory
    from autoprune.run.names import WEIGHTS_FILE
    from autoprune.run.results import recorded_notes
    from autoprune.study.earlier_data import earlier_trials

    directory = RunDirectory(run)
    if (run / WEIGHTS_FILE).is_file() and not directory.config_file.is_file():
        raise ConfigError(no_policy(run, "a run directory, or a folder"))
    config = directory.config()  # raises where this is no run
    scores = {number: recovered_map(metrics) for number, metrics in recovered_metrics(run).items()}
    if trial is None and len(scores) > 1:  # those measured on other data are not compared
        set_aside = earlier_trials(recorded_notes(config, directory))
        scores = {n: score for n, score in scores.items() if n not in set_aside} or scores
    if not scores or trial not in {None, *scores}:
        which = "" if trial is None else f" {trial}"
        command = command_line("recover", run, *(() if trial is None else ("--trial", trial)))
        raise RunError(f"{run} has no recovered trial{which}; first `{command}`")
    best = max(scores, key=lambda number: scores[number] or 0.0)
    return directory.recovered_folder(best if trial is None else trial)
