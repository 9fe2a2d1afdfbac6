"""The latency of a network as a function of its widths, so that no network is built to predict it.

The time of every convolution and linear layer is measured over a grid of its input and output widths and
interpolated. Their sum is corrected by measurements of whole networks, which include what none of them does
(norms, additions, the calls themselves):
t = a · (sum of the operators) + b · (bytes that the operations write) + c + d · GFLOPs, with no negative
coefficient, by least squares on relative errors. The term in GFLOPs is for machines that do other work at
the same time: the more the operators' times were disturbed, the smaller a becomes. Random factors of e^0.6 on
each operator raised the mean error on 20 networks of a RetinaNet-R18 from 2-3% to 4-6% without the GFLOPs;
with them it stayed at 2-4%.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import RunError
from autoprune.files import write_text
from autoprune.graph import ChannelGraph
from autoprune.latency.operators import Call, Operator
from autoprune.latency.tables import GRID, Array


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """Predicts milliseconds from widths.

    Attributes:
        graph: the groups that widths are of.
        calls: the operators of one pass.
        tables: [C, P, Q] milliseconds of each call with a fraction `GRID[p]` of its inputs and `GRID[q]` of
            its outputs; nondecreasing in both.
        coefficients: a, b, c, d of the correction: see `features`.
        errors: relative error on each measured network, by leave-one-out cross-validation.
        dense_ms: measured latency of the dense network.
        label: what it was measured on.
        key: hash of what the model is valid for: device, runtime, operators, groups and space.
    """

    graph: ChannelGraph
    calls: tuple[Call, ...]
    tables: Array
    coefficients: tuple[float, ...]
    errors: tuple[float, ...]
    dense_ms: float
    label: str
    key: str = ""

    def __call__(self, widths: NDArray[Any]) -> Array:
        """Milliseconds of widths [..., G]."""
        widths = np.asarray(widths)
        rows = widths.reshape(-1, widths.shape[-1])
        inputs = np.concatenate(
            [
                features(self.graph, self._fractions, self.tables, rows[start : start + _ROWS])
                for start in range(0, len(rows), _ROWS)
            ]
        )
        return np.asarray(inputs @ np.array(self.coefficients)).reshape(widths.shape[:-1])

    @property
    def mean_error(self) -> float:
        """Mean of the absolute relative errors."""
        return float(np.mean(np.abs(self.errors)))

    @property
    def margin(self) -> float:
        """Fraction to stay below a budget by, so that four of five networks meet it when measured."""
        return float(max(0.0, np.quantile(self.errors, 0.8)))

    @cached_property
    def _fractions(self) -> tuple[Array, Array]:
        return fractions_of(self.graph, self.calls)

    def save(self, path: Path) -> None:
        """Writes what was measured as JSON, to the last digit: what is read back predicts the same.

        Raises:
            RunError: the file can't be written.
        """
        content = {
            "key": self.key,
            "label": self.label,
            "coefficients": self.coefficients,
            "errors": self.errors,
            "dense_ms": self.dense_ms,
            "calls": [{"weight": call.weight, "operator": asdict(call.operator)} for call in self.calls],
            "tables": self.tables.tolist(),
        }
        write_text(path, json.dumps(content) + "\n")

    @staticmethod
    def load(path: Path, graph: ChannelGraph) -> "LatencyModel | None":
        """Reads what `save` wrote; ``None`` where there is no file. Its `key` says if it fits ``graph``.

        Raises:
            RunError: the file is damaged.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            calls = tuple(Call(entry["weight"], _operator(entry["operator"])) for entry in content["calls"])
            return LatencyModel(
                graph,
                calls,
                np.array(content["tables"]),
                tuple(content["coefficients"]),
                tuple(content["errors"]),
                content["dense_ms"],
                content["label"],
                content["key"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged; delete it, and the latency is measured again") from error


def fractions_of(graph: ChannelGraph, calls: Sequence[Call]) -> tuple[Array, Array]:
    """How each call's fractions of inputs and outputs follow from the groups' fractions.

    Args:
        graph: G channel groups.
        calls: C operators of one pass.

    Returns:
        Two arrays [C, G + 1], for inputs and outputs. A call's fraction is its row times the groups'
        fractions of their dense widths, with a 1 appended; the last column is what no group can change.
    """
    places = {name: place for place, name in enumerate(graph.cost.names)}
    rows_of: dict[tuple[str, int], Array] = {}
    for name, place in places.items():
        for tensor, axis, index in graph.groups[name].members:
            if axis < 2:
                row = rows_of.setdefault((tensor, axis), np.zeros(len(places) + 1))
                row[place] += (index >= 0).sum() / len(index)
    whole = np.zeros(len(places) + 1)
    result = []
    for axis in (1, 0):
        rows = []
        for call in calls:
            # in a grouped convolution the inputs are not an axis of the weight: they go with the outputs
            row = rows_of.get((call.weight, axis if call.operator.groups == 1 else 0), whole).copy()
            row[-1] = 1 - row[:-1].sum()
            rows.append(row)
        result.append(np.array(rows).reshape(len(calls), len(places) + 1))
    return result[0], result[1]


def features(graph: ChannelGraph, fractions: tuple[Array, Array], tables: Array, widths: Array) -> Array:
    """Inputs of the correction.

    Args:
        graph: G channel groups.
        fractions: what `fractions_of` returns for C calls.
        tables: [C, P, Q] milliseconds.
        widths: [n, G].

    Returns:
        [n, 4]: milliseconds of all operators by bilinear interpolation, millions of bytes written, 1, GFLOPs.
    """
    kept = np.column_stack([widths / graph.cost.dense, np.ones(len(widths))])  # [n, G + 1]
    grid, last = np.array(GRID), len(GRID) - 2
    corners, weights = [], []
    runs = np.ones((len(widths), len(tables)), dtype=bool)  # a layer without inputs or outputs does not
    for rows in fractions:
        fraction = np.clip(kept @ rows.T, 0, 1)  # [n, C]
        runs &= fraction > 1e-9
        low = np.clip(np.searchsorted(grid, fraction, side="right") - 1, 0, last)
        corners.append(low)
        weights.append((fraction - grid[low]) / (grid[low + 1] - grid[low]))
    (p, q), (u, v) = corners, weights
    c = np.arange(len(tables))
    times = (1 - u) * ((1 - v) * tables[c, p, q] + v * tables[c, p, q + 1])
    times += u * ((1 - v) * tables[c, p + 1, q] + v * tables[c, p + 1, q + 1])
    written = graph.cost.activations(widths) / 1e6
    gflops = graph.cost.flops(widths) / 1e9
    times *= runs
    return np.column_stack([times.sum(1), written, np.ones(len(widths)), gflops])


def correct(inputs: Array, measured: Array) -> tuple[float, ...]:
    """Coefficients [k] of the correction: least squares on relative errors, none negative.

    Args:
        inputs: [n, k], as `features` returns them.
        measured: [n] milliseconds.
    """
    from scipy.optimize import nnls

    return tuple(nnls(inputs / measured[:, None], np.ones(len(measured)))[0].tolist())


def left_out_errors(inputs: Array, measured: Array) -> tuple[float, ...]:
    """Relative error on each network, measured / predicted - 1, by a correction fitted to the others.

    Args:
        inputs: [n, k], as `features` returns them.
        measured: [n] milliseconds.
    """
    errors = []
    for place in range(len(measured)):
        others = np.arange(len(measured)) != place
        predicted = inputs[place] @ np.array(correct(inputs[others], measured[others]))
        errors.append(float(measured[place] / predicted - 1))
    return tuple(errors)


_ROWS = 512  # rows of widths that are predicted in one batch


def _operator(fields: Mapping[str, Any]) -> Operator:
    typed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Operator(**typed)
