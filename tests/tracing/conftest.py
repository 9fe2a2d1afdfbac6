"""The networks and references of `tests/graph`."""

from ..graph.conftest import *  # noqa: F403
