"""Latency is measured interleaved, after a warm-up, by an injected clock."""

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.latency.timing import measure


class Machine:
    """A clock, and models whose passes take a scripted time on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def model(self, name: str, seconds: list[float]) -> nn.Module:
        machine, remaining = self, list(seconds)

        class Pass(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                assert not self.training
                assert not torch.is_grad_enabled()
                machine.calls.append(name)
                machine.now += remaining.pop(0)
                return x

        return Pass()


def test_median_and_spread_are_those_of_the_passes_after_the_warmup() -> None:
    machine = Machine()
    timed = [0.010, 0.030, 0.020, 0.050, 0.040]
    model = machine.model("a", [9.0, 9.0, *timed])
    latency = measure({"a": model}, (torch.zeros(1),), repeats=5, warmup=2, clock=machine.clock)["a"]
    assert latency.median_ms == pytest.approx(30.0)
    assert latency.p10_ms == pytest.approx(np.percentile(timed, 10) * 1e3)
    assert latency.p90_ms == pytest.approx(np.percentile(timed, 90) * 1e3)
    assert latency.repeats == 5


def test_models_are_interleaved_and_the_order_alternates() -> None:
    machine = Machine()
    models = {name: machine.model(name, [0.01] * 4) for name in "abc"}
    measure(models, (torch.zeros(1),), repeats=3, warmup=1, clock=machine.clock)
    assert "".join(machine.calls) == "abccbaabccba"


def test_a_steady_drift_does_not_favor_either_model() -> None:
    machine = Machine()

    class Slowing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            machine.now += 0.010 + 0.01 * machine.now
            return x

    latencies = measure({"a": Slowing(), "b": Slowing()}, (torch.zeros(1),), repeats=40, clock=machine.clock)
    assert latencies["a"].median_ms == pytest.approx(latencies["b"].median_ms, rel=2e-3)


def test_each_module_returns_to_its_own_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].eval()
    measure({"a": model}, (torch.ones(3, 2),), repeats=1, warmup=0)
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert torch.equal(model[0].running_mean, torch.zeros(2))


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (1, -1)])
def test_too_few_passes_are_refused(repeats: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        measure({}, (), repeats=repeats, warmup=warmup)
