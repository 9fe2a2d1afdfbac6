"""The networks and references of `tests/graph`."""

from ..graph.conftest import (  # noqa: F401
    check_op,
    compare,
    costed,
    counted,
    freeze_norms,
    keep_sets,
    largest_distance,
    outputs,
    randomize,
    residual,
)
