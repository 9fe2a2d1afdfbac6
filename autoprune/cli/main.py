"""The program `autoprune`: runs a command, and turns every error into one line and an exit code."""

import errno
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from autoprune import __version__
from autoprune.cli.apply import apply
from autoprune.cli.demo import demo
from autoprune.cli.doctor import doctor
from autoprune.cli.eval import evaluate
from autoprune.cli.export import export
from autoprune.cli.front import front
from autoprune.cli.inspect import inspect
from autoprune.cli.latency import latency
from autoprune.cli.recover import recover
from autoprune.cli.report import report
from autoprune.cli.schema import schema
from autoprune.cli.search import search
from autoprune.cli.settings import with_new_flags
from autoprune.cli.space import space
from autoprune.cli.terminal import StoppedError, problems, widen_columns
from autoprune.cli.train import train
from autoprune.errors import AutopruneError, ConfigError, is_out_of_memory
from autoprune.fields import is_utf8
from autoprune.passwords import hide
from autoprune.process import lasting_streams, signals_interrupt

USAGE_ERROR = 2
FAILURE = 1
INTERRUPTED = 130
READER_GONE = 141
"""As of a program that the signal of a broken pipe ended."""
UNUSABLE_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES)
RESUMABLE = {"demo", "recover", "search", "space", "train"}
WRITERS = {"front", "export", "apply", "report"}  # each file or folder appears at once, when it is whole
PRINTERS = {"doctor", "eval", "front", "inspect", "latency", "schema"}  # standard output is all they are for
HELP = {"--help", "-h"}
SLOW_IMPORTS = ("torch", "torchvision", "ultralytics", "transformers", "libreyolo", "timm", "optuna", "ray")
SLOW_S = 2.0
"""After so many seconds an import is told of: the first one after an installation takes up to a minute."""

app = typer.Typer(
    name="autoprune",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": sorted(HELP), "max_content_width": 100},
    epilog="Start with [bold]autoprune demo[/]: no data, no network, a few minutes.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"autoprune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")] = False,
) -> None:
    """Prunes object detectors: several times cheaper, with most of the mAP.

    A search finds how many channels each layer needs; the best policies are then recovered (fine-tuned).
    """


COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "demo": (demo, "autoprune demo --out runs/demo --seed 1"),
    "doctor": (doctor, "autoprune doctor --data data/mine"),
    "train": (train, "autoprune train --model retinanet_resnet18_fpn --data data/mine --steps 5000"),
    "eval": (evaluate, "autoprune eval runs/mine/recovered/trial-0017 --split test"),
    "inspect": (inspect, "autoprune inspect retinanet_resnet50_fpn"),
    "space": (space, "autoprune space --weights dense.safetensors --data data/mine --to space.yaml"),
    "search": (search, "autoprune search --config mine.yaml --budget-gflops 50% --trials 32 --out runs/mine"),
    "front": (front, "autoprune front runs/mine"),
    "recover": (recover, "autoprune recover runs/mine --trial 17 --steps 5000"),
    "export": (export, "autoprune export runs/mine --to detector"),
    "apply": (apply, "autoprune apply runs/mine/policies/trial-0017.yaml --weights dense.pt --to pruned"),
    "latency": (latency, "autoprune latency retinanet_resnet50_fpn runs/mine/policies/trial-0017.yaml"),
    "report": (report, "autoprune report runs/mine --png --csv"),
    "schema": (schema, "autoprune schema --space > space.schema.json"),
}
for name, (command, example) in COMMANDS.items():
    # typer would keep the line breaks within a paragraph
    text = "\n\n".join(" ".join(part.split()) for part in (command.__doc__ or "").split("\n\n"))
    app.command(name, help=text, epilog=f"Example: [bold]{example}[/]")(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: command and its arguments; default: those of this process.

    Returns:
        0, 2 for invalid input, 130 after Ctrl-C or SIGTERM, 141 where the reader of a table has gone, 1 for
        any other failure.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    works = _is_command(arguments) and arguments[0] not in PRINTERS and not HELP.intersection(arguments)
    losses: list[OSError] = []

    def report_loss(error: OSError) -> None:
        losses.append(error)
        if works:
            problems().print(
                f"warning: standard output can't be written ({error.strerror}); the work goes on without it"
            )

    widen_columns()
    with lasting_streams(report_loss), signals_interrupt():
        code = _run(arguments)
        sys.stdout.flush()
        if not losses or works:
            return code
        if isinstance(losses[0], BrokenPipeError):  # `| head` has read enough
            return code or READER_GONE
        return _stop(f"error: standard output can't be written: {losses[0].strerror}", code or FAILURE)


def _run(arguments: list[str]) -> int:
    """Runs one command, and turns whatever ends it into an exit code."""
    # `--debug` is accepted anywhere; typer alone would only take it before the command
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with warnings.catch_warnings():
        if not debug:
            _quiet()
        try:
            _refuse_unusable(arguments)
            arguments = with_new_flags(arguments)
            with _telling_of_imports():
                code = typer.main.get_command(app).main(
                    arguments or ["--help"], prog_name="autoprune", standalone_mode=False
                )
        except (KeyboardInterrupt, typer.Abort):
            return _stop(f"interrupted: {_how_to_resume(arguments)}", INTERRUPTED)
        except StoppedError as stopped:
            return _stop(f"interrupted: {stopped}", INTERRUPTED)
        except BaseException as error:  # foreign code, such as a user's detector, may call sys.exit
            if debug:
                print(hide(traceback.format_exc()), end="", file=sys.stderr)
            return _report(error, arguments)
    if code == INTERRUPTED:  # how typer reports Ctrl-C; older versions of click raise Abort
        return _stop(f"interrupted: {_how_to_resume(arguments)}", INTERRUPTED)
    return code if isinstance(code, int) else 0


@contextmanager
def _telling_of_imports() -> Iterator[None]:
    """Prints one line where the command has been importing a library for about `SLOW_S`."""
    ended = threading.Event()
    if SLOW_IMPORTS[0] not in sys.modules:
        threading.Thread(target=_tell_of_imports, args=[ended], daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _tell_of_imports(ended: threading.Event) -> None:
    while not ended.wait(SLOW_S):
        for name in SLOW_IMPORTS:
            if getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False):
                problems().print(f"importing {name} …")
                return


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    """Prints one line about ``error`` and returns the exit code."""
    if isinstance(error, AutopruneError):
        return _stop(f"error: {_one_line(str(error))}", error.exit_code)
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    # typer's own usage errors, recognized by their method: their class moved between versions
    if callable(message := getattr(error, "format_message", None)):
        command = f"{arguments[0]} " if _is_command(arguments) else ""
        return _stop(
            f"error: {_one_line(message()).rstrip('.')}; see `autoprune {command}--help`", USAGE_ERROR
        )
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH and error.filename is not None:
        return _stop(f"error: {error.filename}: {error.strerror}; give another path", USAGE_ERROR)
    text = _one_line(str(error)) or "no message"
    if is_out_of_memory(error):
        return _stop("error: out of memory; take fewer images at once (--batch, --batch-size)", FAILURE)
    if isinstance(error, ImportError):
        return _stop(
            f"error: a library can't be imported: {text}; `autoprune doctor` checks them, --debug shows it",
            FAILURE,
        )
    return _stop(f"error: {type(error).__name__}: {text}; run with --debug for the traceback", FAILURE)


def _stop(line: str, code: int) -> int:
    problems().print(hide(line))
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _refuse_unusable(arguments: Sequence[str]) -> None:
    """Refuses what can be no path, or none that a file of a run can name.

    An empty argument, as of a variable that is not set, would be the current folder.

    Raises:
        ConfigError: names the flag.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, value = argument.partition("=")
        if not argument.strip() or (name.startswith("--") and equals and not value.strip()):
            flag = name.strip() or before
            if flag.startswith("-"):
                raise ConfigError(f"the value after {flag} is empty; give one, or omit {flag}")
            raise ConfigError("an argument is empty; give a value, or omit it")
        if "\0" in argument:
            raise ConfigError(f"{argument!r} holds a NUL byte, which no path or name can; remove it")
        if not is_utf8(argument):
            raise ConfigError(f"{os.fsencode(argument)!r} is not UTF-8, as the files of a run are; rename it")


def _is_command(arguments: Sequence[str]) -> bool:
    return bool(arguments) and arguments[0] in COMMANDS


def _how_to_resume(arguments: Sequence[str]) -> str:
    if arguments and arguments[0] in RESUMABLE:
        return "what is finished is kept; the same command resumes from there"
    if arguments and arguments[0] in WRITERS:
        return "no file is half-written; the same command makes what is missing"
    return "nothing was changed"


def _quiet() -> None:
    """Hides the warnings of libraries, and prints autoprune's own as one line on standard error."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=UserWarning, module=r"autoprune\.")
    warnings.showwarning = lambda message, *_, **__: problems().print(f"warning: {_one_line(str(message))}")


if __name__ == "__main__":
    sys.exit(main())
