"""Models that run again as the dense one was traced."""

import torch
from torch import nn

from autoprune.tracing.replays import replay, retrace, run_again
from autoprune.tracing.trace import trace

IMAGES = torch.rand(1, 3, 8, 8)


def test_a_replay_of_the_model_itself_takes_the_same_steps(residual):
    model = residual()
    traced = trace(model, (IMAGES,))
    steps, error = replay(model, (IMAGES,), traced)
    assert error is None
    assert [step.op for step in steps] == [step.op for step in traced.constraints.steps]
    steps, error = replay(model, (IMAGES[:, :2],), traced)
    assert isinstance(error, RuntimeError)
    assert len(steps) < len(traced.constraints.steps)


def test_a_run_restores_the_mode_and_returns_the_error(residual):
    model = residual().train()
    traced = trace(model, (IMAGES,))
    assert run_again(model, (IMAGES,), traced) is None
    assert isinstance(run_again(model, (IMAGES[:, :2],), traced), RuntimeError)
    assert all(module.training for module in model.modules())


def test_parameters_have_the_same_atoms_in_another_trace_and_all_others_have_new_ones():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 1, groups=2))
    traced = trace(model, (IMAGES,))
    again = retrace(model, (IMAGES,), traced, first_free=1000)
    assert [leaf.name for leaf in again.leaves] == [leaf.name for leaf in traced.leaves]
    for one, other in zip(traced.leaves, again.leaves, strict=True):
        assert all((a == b).all() for a, b in zip(one.axes, other.axes, strict=True) if a is not None)
    assert again.constraints.size >= 1000
