"""Modes that a model is run in, and that it is left as it was."""

import pytest
import torch
from torch import nn

from autoprune.graph import analyze
from autoprune.modules.attention import HeadAttention
from autoprune.modules.run_modes import eval_then_restore, loss_mode_copy, set_training, thresholds_lowered

X = torch.rand(2, 3, 8, 8)


def test_an_analysis_leaves_the_model_as_it_was(residual):
    model = residual()
    model.train()
    model.norm.eval()
    model.register_buffer("calls", torch.zeros(1))
    model.register_forward_pre_hook(lambda module, _: (module.calls.add_(1), torch.rand(1), None)[2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    analyze(model, (X,))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.norm.training
    assert not model._forward_hooks
    assert not any(child._forward_hooks for child in model.children())
    assert not any("autoprune" in key for p in model.parameters() for key in vars(p))


def test_a_batch_statistic_in_training_mode_is_not_traced(residual):
    model = residual().train()
    assert analyze(model, (X,)).gflops() == analyze(model.eval(), (X,)).gflops()


class Stateful(nn.Module):
    """Counts its calls, draws numbers and fails on request."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout()
        self.attention = nn.MultiheadAttention(4, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x, fail=False):
        self.calls += 1
        if fail:
            raise RuntimeError("on request")
        return self.drop(self.norm(x)) + torch.rand(1)


@pytest.mark.parametrize("fail", [False, True])
def test_flags_buffers_random_state_and_classes_are_restored(fail):
    model = Stateful()
    model.drop.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    flags = [module.training for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    try:
        with eval_then_restore(model):
            assert not any(module.training for module in model.modules())
            assert type(model.attention) is HeadAttention
            assert not torch.backends.mha.get_fastpath_enabled()
            model(torch.rand(3, 4), fail)
            assert model.calls == 1
    except RuntimeError:
        assert fail
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert type(model.attention) is nn.MultiheadAttention
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_buffers_made_in_inference_mode_are_restored():
    with torch.inference_mode():
        model = Stateful()
    with eval_then_restore(model), torch.inference_mode():
        model(torch.rand(3, 4))
    assert model.calls == 0


class Thresholds(nn.Module):
    """Settings as torchvision's detectors hold them."""

    def __init__(self):
        super().__init__()
        self.score_thresh, self.nms_thresh, self.detections_per_img = 0.5, 0.7, 100
        self._pre_nms_top_n = {"training": 2000, "testing": 8}


def test_lowered_thresholds_let_a_few_detections_through_and_come_back():
    model = nn.Sequential(Thresholds())
    before = dict(vars(model[0]))
    with thresholds_lowered(model):
        assert model[0].score_thresh < 0
        assert model[0].nms_thresh == 0.7  # decides which boxes overlap, not whether there are any
        assert model[0].detections_per_img == 16
        assert model[0]._pre_nms_top_n == {"training": 16, "testing": 8}
    assert vars(model[0]) == before


def test_norms_and_dropout_stay_in_eval_mode_when_training_is_set():
    model = Stateful().eval()
    set_training(model)
    assert [model.training, model.norm.training, model.drop.training] == [True, False, False]


def test_a_copy_in_loss_mode_moves_no_statistics_and_leaves_the_model_alone():
    model = Stateful().eval()
    copied = loss_mode_copy(model)
    assert copied is not model
    assert copied.training
    assert not model.training
    copied(torch.rand(3, 4) + 5)
    assert torch.equal(copied.norm.running_mean, model.norm.running_mean)
    # Every sample by itself, whatever else is in the batch.
    x = torch.rand(3, 4)
    torch.manual_seed(0)
    whole = copied(x)[:1]
    torch.manual_seed(0)
    assert torch.equal(copied(x[:1]), whole)
