"""What a detector may return in training mode."""

import pytest
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.modules.losses import losses_of


class Detector(nn.Module):
    """Returns what ``answer`` makes of a loss."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.tensor(2.0)), answer

    def forward(self, images, targets):
        return self.answer(self.weight * 3)


def test_losses_are_float32_scalars_that_reach_the_weights():
    model = Detector(lambda loss: {"box": loss.half(), "label": loss[None]})
    losses = losses_of(model, [], [])
    assert {name: (loss.item(), loss.shape, loss.dtype) for name, loss in losses.items()} == {
        "box": (6.0, (), torch.float32),
        "label": (6.0, (), torch.float32),
    }
    sum(losses.values()).backward()
    assert model.weight.grad == 6
    with torch.no_grad():
        assert losses_of(model, [], [])["box"] == 6


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda loss: None, "must return a dict of losses in training mode, not NoneType"),
        (lambda loss: [{"boxes": loss}], "must return a dict of losses in training mode, not list"),
        (lambda loss: {}, "must return a dict of losses in training mode, not an empty one"),
        (lambda loss: {"box": loss.expand(2, 3)}, r"the loss 'box' of Detector must be .*, not \[2, 3\]"),
        (lambda loss: {"box": loss.item()}, "the loss 'box' of Detector must be .*, not float"),
        (lambda loss: {"box": loss.detach()}, "no loss of Detector depends on its weights"),
        (lambda loss: {"box": loss["x"]}, r"fails as model\(images, targets\) in training mode: IndexError"),
    ],
)
def test_anything_else_is_one_line_that_names_the_detector(answer, message):
    with pytest.raises(ModelError, match=message) as error:
        losses_of(Detector(answer), [], [])
    assert "\n" not in str(error.value)
    assert "Detector" in str(error.value)


def test_a_detector_without_targets_is_one_line():
    with pytest.raises(
        ModelError, match=r"Conv2d fails as model.* in training mode: TypeError: .*; fix the factory"
    ):
        losses_of(nn.Conv2d(3, 3, 1), [], [])
