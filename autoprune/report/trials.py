"""`trials.csv`: one row per trial of a run, with its metrics and widths."""

import csv
import io
from pathlib import Path

from autoprune.files import write_text
from autoprune.report.entries import recovered_map
from autoprune.report.run_summary import RunSummary
from autoprune.space.input_size import channels_of


def write_trials(path: Path, summary: RunSummary) -> None:
    """Writes one row per trial. Metrics are those of the highest rung reached; mAP is a fraction.

    The mAP of a trial that was re-evaluated is the mean; ``measured`` is the number of evaluations.

    The column ``other_data`` is there where trials were measured on other data, whose rows come last.
    The column ``input_px`` is there where the search chose among input sizes.
    The columns ``map_rung_0``, ``map_rung_1``, … hold the mAP at each rung, ``width:GROUP`` the widths.

    Raises:
        RunError: the file can't be written.
    """
    front = {point.trial for point in summary.result.front}
    records = (*summary.records, *summary.set_aside)
    metric_names = dict.fromkeys(name for record in records for name in record.metrics)
    other_data = ["other_data"] if summary.set_aside else []
    rows = [
        {
            "trial": record.number,
            **{name: int(record.other_data) for name in other_data},
            "state": record.state,
            "origin": record.origin,
            "budget_gflops": record.budget,
            **({} if record.pixels is None else {"input_px": record.pixels}),
            "on_front": int(record.number in front),
            **record.metrics,
            "measured": len(record.maps),
            "recovered_map": recovered_map(summary.recovered.get(record.number)),
            "reason": record.reason,
            **{f"map_rung_{rung}": metrics["map"] for rung, metrics in enumerate(record.rungs)},
            **{f"width:{name}": width for name, width in channels_of(record.widths).items()},
        }
        for record in records
    ]
    columns = [
        *("trial", *other_data, "state", "origin", "budget_gflops"),
        *(["input_px"] if any(record.pixels is not None for record in records) else []),
        "on_front",
        *metric_names,
        *("measured", "recovered_map", "reason"),
        *(f"map_rung_{rung}" for rung in range(len(summary.config.rungs))),
        *dict.fromkeys(f"width:{name}" for record in records for name in channels_of(record.widths)),
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
