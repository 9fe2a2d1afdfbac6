"""`trials.csv`: every trial of a run in a row, with all that was measured and the widths it had."""

import csv
import io
from pathlib import Path

from autoprune.files import write_text
from autoprune.report.entries import recovered_map
from autoprune.report.run_summary import RunSummary


def write_trials(path: Path, facts: RunSummary) -> None:
    """Writes one row a trial. Metrics are those of the highest rung reached, mAP a fraction.

    The mAP of a trial that was measured again is the mean; ``measured`` says of how many.

    The columns of a rung's mAP are ``map_rung_0`` and so on, those of a group's width ``width:GROUP``.

    Raises:
        RunError: the file can't be written.
    """
    front = {point.trial for point in facts.result.front}
    measured = dict.fromkeys(name for record in facts.records for name in record.metrics)
    rows = [
        {
            "trial": record.number,
            "state": record.state,
            "origin": record.origin,
            "budget_gflops": record.budget,
            "on_front": int(record.number in front),
            **record.metrics,
            "measured": len(record.maps),
            "recovered_map": recovered_map(facts.recovered.get(record.number)),
            "reason": record.reason,
            **{f"map_rung_{rung}": metrics["map"] for rung, metrics in enumerate(record.rungs)},
            **{f"width:{name}": width for name, width in record.widths.items()},
        }
        for record in facts.records
    ]
    columns = [
        *("trial", "state", "origin", "budget_gflops", "on_front"),
        *measured,
        *("measured", "recovered_map", "reason"),
        *(f"map_rung_{rung}" for rung in range(len(facts.config.rungs))),
        *dict.fromkeys(f"width:{name}" for record in facts.records for name in record.widths),
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
