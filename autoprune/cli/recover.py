"""`autoprune recover`: recovers (fine-tunes) policies of a run in full."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from autoprune.cli.settings import PANELS, with_config
from autoprune.cli.terminal import show_table, tell, working
from autoprune.config import Config
from autoprune.progress import command_line
from autoprune.report.entries import kind_of
from autoprune.report.tables import Entry, comparison
from autoprune.study.trials import origin_label

FIELDS = (
    *PANELS["Training"],
    "device",
    "threads",
    "data",
    "weights",
    "weights_key",
    "image_cache_gib",
    "strict",
    "evaluator",
)
CLEARLY_ABOVE = 0.02
"""MAP, a fraction: pruned detectors are at most a little better than a dense one that has converged."""


@with_config(*FIELDS, described=dict.fromkeys(FIELDS, "the run's"))
def recover(
    config: Config,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a search.")],
    trial: Annotated[
        list[int] | None,
        typer.Option(
            "--trial",
            metavar="N",
            help="Number of a trial; can be given several times; default: the best trial.",
        ),
    ] = None,
) -> None:
    """Recover policies of a run: fine-tune them in full, with the dense detector as teacher.

    Settings that are not given are those of the run. An interrupted recovery resumes from its last
    checkpoint; one is written every 5 to 30 seconds.
    """
    from autoprune.recovery.recover import recover as recover_trials

    # the run's config.yaml says what was searched; only how to train and where files lie may differ
    given = {name: getattr(config, name) for name in FIELDS if name in config.model_fields_set}
    with working() as console:
        recovered = recover_trials(run, trials=trial, **given)
        rows = []
        if dense := recovered[0].metrics.get("dense"):
            rows.append(Entry("dense", "dense", dense["metrics"]["map"], dense["gflops"], dense["mparams"]))
        rows += [
            Entry(
                _label(item.metrics),
                kind_of(item.metrics["origin"]),
                item.map,
                item.metrics["gflops"],
                item.metrics["mparams"],
            )
            for item in recovered
        ]
        show_table(console, comparison(rows, title="after full recovery, on val"))
        for item in recovered:
            tell(console, f"wrote {item.folder}")
        above = 0.0 if not dense else max(item.map for item in recovered) - dense["metrics"]["map"]
        if above > CLEARLY_ABOVE:
            tell(
                console,
                f"the best is {100 * above:.1f} mAP above the dense detector: that has not converged, and "
                "holds back as a teacher; train it for longer before the search",
            )
        tell(console, f"next: {command_line('export', recovered[0].folder, '--to', 'detector')}")


def _label(metrics: Mapping[str, Any]) -> str:
    """A recovered trial in the table: its number, where it is from, and that training did not help it."""
    kept = ", kept untrained" if metrics.get("kept") == "untrained" else ""
    return f"trial {metrics['trial']} ({origin_label(metrics['origin'])}{kept})"
