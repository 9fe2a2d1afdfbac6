"""Every operator of a network is timed over the grid of its widths, and equal ones once."""

import numpy as np
import pytest
import torch

from autoprune.latency import tables as module
from autoprune.latency.machine import LatencySetup
from autoprune.latency.tables import GRID, measure_tables

SETUP = LatencySetup("torch", torch.device("cpu"), 1, (64, 64))


def test_every_operator_is_timed_once_over_its_widths(network, fake_seconds, tmp_path, monkeypatch):
    *_, calls = network
    timed = []

    def fake(operator, *_):
        timed.append(operator)
        return lambda: operator

    def seconds(passes):
        return {name: fake_seconds(run()) for name, run in passes.items()}

    monkeypatch.setattr(module, "one_pass", fake)
    tables = measure_tables(calls, SETUP, tmp_path, seconds)
    assert len(timed) == len(set(timed))
    assert {call.operator for call in calls} <= set(timed)
    for call, table in zip(calls, tables, strict=True):
        assert table[-1, -1] == pytest.approx(1e3 * fake_seconds(call.operator))
        half = GRID.index(0.5)
        if call.operator.groups == 1 and call.operator.inputs % 16 == call.operator.outputs % 16 == 0:
            assert table[half, half] == pytest.approx(table[-1, -1] / 4)
        assert (np.diff(table, axis=0) >= 0).all()
        assert (np.diff(table, axis=1) >= 0).all()
