"""The contract of every criterion. A new one needs a record in `CRITERIA` and a reference in `by_hand`."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from autoprune.errors import ConfigError, ModelError
from autoprune.graph import analyze
from autoprune.importance import CRITERIA, readers, score
from autoprune.importance.readers import RIDGE

WIDTH = 6
NORMS = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": lambda width: nn.GroupNorm(3, width),  # couples channels in pairs
}
DETERMINISTIC = [name for name in CRITERIA if name != "random"]
WITH_DATA = [name for name, criterion in CRITERIA.items() if criterion.needs_data]


class Detector(nn.Module):
    """Two coupled layers, a reader of their sum that is called for two levels, and random sampling.

    sum = norm(first(x)) + second(x);  z = mean over pixels and levels of head(act(sum));
    loss = (z - y)² / 2 of each image. With ``act`` the identity, z is linear in the gate of every channel.
    """

    def __init__(self, norm="batch", act=None, sampling=0.0):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, WIDTH, 1, bias=False), NORMS[norm](WIDTH)
        self.second, self.head = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 1, 1)
        self.act = act or nn.Identity()
        self.sampling, self.levels = sampling, 2
        generator = torch.Generator().manual_seed(0)
        for name, tensor in self.state_dict().items():
            if name == "norm.running_var":
                tensor.fill_(1 - 1e-5)  # with the norm's epsilon it divides by one
            elif tensor.is_floating_point() and name != "norm.running_mean":
                tensor.copy_(0.2 + torch.rand(tensor.shape, generator=generator))

    def forward(self, images, targets=None):
        x = torch.stack(images)
        features = self.act(self.norm(self.first(x)) + self.second(x))
        levels = [features, features[..., ::2, ::2]][: self.levels]
        z = torch.stack([self.head(level).mean((1, 2, 3)) for level in levels]).mean(0)
        if targets is None:
            return z
        assert self.training, "detectors return losses in training mode only"
        y = torch.stack([target["y"] for target in targets])
        kept = 1 - self.sampling * torch.rand(())
        return {"loss": kept * ((z - y).square() / 2).mean()}


def target_of(y):
    """What the detector is to say of an image without boxes."""
    return {"y": y, "boxes": torch.zeros(0, 4)}


def batches_around(model, images=4, size=4):
    """Pairs of targets at the same distance on both sides of what the detector says.

    So first-order changes of the squared loss cancel over each pair of images, and what is left is the second
    order.
    """
    generator = torch.Generator().manual_seed(1)
    x = [torch.rand(3, size, size, generator=generator) for _ in range(images // 2)]
    with torch.no_grad():
        z = model.eval()(x)
    pairs = [
        ([image], [target_of(value + side)]) for image, value in zip(x, z, strict=True) for side in (-1, 1)
    ]
    return lambda: pairs


def graph_of(model):
    return analyze(model, ([torch.rand(3, 4, 4)],))


def losses(model, batches):
    """Loss of each image with the norms' statistics untouched, in float64."""
    model = copy.deepcopy(model).double().train()
    model.norm.eval()
    with torch.no_grad():
        return np.array(
            [float(model([x.double() for x in images], targets)["loss"]) for images, targets in batches()]
        )


def with_gates(model, gates):
    """The detector whose channels are multiplied by ``gates`` [width] where they are read."""
    gated = copy.deepcopy(model).double()
    with torch.no_grad():
        gated.head.weight *= torch.as_tensor(gates)[:, None, None]
    return gated


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_it_scores_every_channel_and_changes_nothing(criterion, norm):
    model = Detector(norm, nn.ReLU(), sampling=0.5).eval()
    model.first.weight.requires_grad_(False)  # as torchvision freezes the first layers
    graph, batches = graph_of(model), batches_around(model)
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    importance = score(criterion, model, graph, batches, seed=3)
    assert list(importance) == list(graph.prunable) == ["first"], "coupled layers have one score per channel"
    scores = importance["first"]
    assert scores.dtype == np.float64
    assert scores.shape == (WIDTH,)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert len(np.unique(scores)) > 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["first.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_a_function_of_the_seed(criterion):
    """It decides what a detector samples while it computes its loss; what happened outside does not."""
    model = Detector(act=nn.ReLU(), sampling=0.5)
    graph, batches = graph_of(model), batches_around(model)
    scores = []
    for seed in (3, 3, 4):
        torch.rand(1)
        scores.append(score(criterion, model, graph, batches, seed)["first"].tolist())
    assert scores[0] == scores[1]
    samples = CRITERIA[criterion].needs_data or criterion == "random"
    assert (scores[0] != scores[2]) == samples


@pytest.mark.parametrize("criterion", DETERMINISTIC)
def test_scores_move_with_the_channels(criterion):
    model = Detector(act=nn.ReLU())
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        for module in (permuted.first, permuted.second, permuted.norm):
            for tensor in [*module.parameters(), *(b for b in module.buffers() if b.ndim)]:
                tensor.copy_(tensor[order].clone())
        permuted.head.weight.copy_(permuted.head.weight[:, order].clone())
    ours, theirs = (
        score(criterion, m, graph_of(m), batches_around(model))["first"] for m in (model, permuted)
    )
    np.testing.assert_allclose(theirs, ours[order.numpy()], rtol=1e-4)


@pytest.mark.parametrize("criterion", DETERMINISTIC)
def test_a_channel_without_weights_is_worth_nothing(criterion):
    model = Detector()
    with torch.no_grad():
        for tensor in (*model.first.parameters(), *model.norm.parameters(), *model.second.parameters()):
            tensor[2] = 0
        model.head.weight[:, 2] = 0
    scores = score(criterion, model, graph_of(model), batches_around(model))["first"]
    assert scores[2] == 0
    assert (np.delete(scores, 2) > 0).all()


@pytest.mark.parametrize("criterion", WITH_DATA)
def test_without_data_it_is_refused(criterion):
    model = Detector()
    graph = graph_of(model)
    with pytest.raises(ConfigError, match=f"`{criterion}` needs training images; give --data"):
        score(criterion, model, graph)
    with pytest.raises(ModelError, match="at least one image"):
        score(criterion, model, graph, list)
    model.forward = lambda images, targets=None: torch.zeros(1)
    with pytest.raises(ModelError, match="dict of losses in training mode, not Tensor"):
        score(criterion, model, graph, lambda: [([torch.rand(3, 4, 4)], [{}])])


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in WITH_DATA])
def test_one_that_needs_no_data_asks_for_none(criterion):
    model = Detector()
    score(criterion, model, graph_of(model), lambda: pytest.fail("it asked for images"))


@pytest.mark.parametrize("criterion", DETERMINISTIC)
def test_scores_that_are_not_finite_are_refused_and_name_the_group(criterion):
    model = Detector()
    graph, batches = graph_of(model), batches_around(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ModelError, match=f"`{criterion}` is not finite on group `first`"):
        score(criterion, model, graph, batches)


def obs_by_hand(model, batches, arrays):
    """Backward elimination with numpy's least squares for every set of channels."""
    pairs = batches()
    with torch.no_grad():
        features = [
            (model.norm.eval()(model.first(image[None])) + model.second(image[None]))[0].double()
            for (image,), _ in pairs
        ]
        z = model([image for (image,), _ in pairs]).double().numpy()
    levels = [level.flatten(1).T for f in features for level in (f, f[..., ::2, ::2])]
    x = torch.cat(levels).numpy()
    distance = z - np.array([float(target["y"]) for _, (target,) in pairs])
    fisher = (distance**2).mean() * (1 / 16 + 1 / 4) / 4  # dL/d(output) is distance / 2 / positions
    x = x - x.mean(0)
    ridge = np.sqrt(RIDGE * (x**2).mean(0) + 1e-8 * (x**2).mean())
    rows = np.concatenate([x / np.sqrt(len(x)), np.diag(ridge)])
    target = rows @ arrays["head.weight"][0, :, 0, 0]

    def error(kept):
        solved = np.linalg.lstsq(rows[:, kept], target, rcond=None)[0]
        return fisher / 2 * ((target - rows[:, kept] @ solved) ** 2).sum()

    alive, order, total, scores = list(range(WIDTH)), [], [0.0], np.zeros(WIDTH)
    while alive:
        after = {one: error([other for other in alive if other != one]) for one in alive}
        order.append(min(after, key=after.__getitem__))
        total.append(after[order[-1]])
        alive.remove(order[-1])
    scores[order] = isotonic_regression(np.diff(total)).x  # the slopes of the greatest convex minorant
    return scores


def by_hand(model, batches):
    """What each criterion gives for the linear detector, from its arrays alone: {criterion: [width]}."""
    arrays = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    first, second = (arrays[f"{name}.weight"][:, :, 0, 0] for name in ("first", "second"))
    read, gamma = arrays["head.weight"][0, :, 0, 0], arrays["norm.weight"]
    gates = []
    for (image,), (target,) in batches():
        x = image.double().numpy()
        x = (x.mean((1, 2)) + x[:, ::2, ::2].mean((1, 2))) / 2
        channels = read * (gamma * (first @ x) + arrays["norm.bias"] + second @ x + arrays["second.bias"])
        z = channels.sum() + arrays["head.bias"][0]
        gates.append((z - float(target["y"])) * channels)  # dL/dm = dL/dz · dz/dm
    gates = np.array(gates)
    taylor = np.abs(gates).mean(0)
    order = np.argsort(taylor)
    together = np.concatenate([[0], (gates[:, order].cumsum(1) ** 2).mean(0)])
    joint = np.zeros(WIDTH)
    joint[order] = np.diff(together)  # all channels push z the same way, so the curve is convex as it is
    assert (np.diff(together, 2) > 0).all()
    return {
        "obs": obs_by_hand(model, batches, arrays),
        "l1": np.abs(first).sum(1) + np.abs(second).sum(1),
        "l2": np.sqrt((first**2).sum(1) + (second**2).sum(1)),
        "bn_scale": np.abs(gamma),
        "taylor": taylor,
        "fisher": (gates**2).mean(0),
        "joint": joint,
    }


@pytest.mark.parametrize("criterion", DETERMINISTIC)
def test_scores_of_a_group_are_those_computed_by_hand(criterion):
    model = Detector()
    batches = batches_around(model)
    scores = score(criterion, model, graph_of(model), batches)["first"]
    expected = by_hand(model, batches)[criterion]
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert scores.sum() == pytest.approx(expected.sum(), rel=1e-4)


def first_order(model, batches, scores):
    """`taylor`: mean over images of the change of the loss while the gate goes down, per unit of the gate."""
    step = 1e-6
    for channel, value in enumerate(scores):
        gates = np.ones(WIDTH)
        gates[channel] -= step
        change = (losses(with_gates(model, gates), batches) - losses(model, batches)) / step
        assert value == pytest.approx(np.abs(change).mean(), rel=1e-3)


def second_order(model, batches, scores):
    """`fisher`: twice the rise of the loss on removing the channel."""
    for channel, value in enumerate(scores):
        gates = np.ones(WIDTH)
        gates[channel] = 0
        rise = (losses(with_gates(model, gates), batches) - losses(model, batches)).mean()
        assert value / 2 == pytest.approx(rise, rel=1e-3)


def second_order_together(model, batches, scores):
    """`joint`: the k lowest scores sum to twice the rise of the loss on removing the k channels at once."""
    order = np.argsort(scores)
    for count in range(1, WIDTH + 1):
        gates = np.ones(WIDTH)
        gates[order[:count]] = 0
        rise = (losses(with_gates(model, gates), batches) - losses(model, batches)).mean()
        assert scores[order[:count]].sum() / 2 == pytest.approx(rise, rel=1e-3)


def second_order_after_compensation(model, batches, scores):
    """`obs`: the rise of the loss after a reconstruction, where an image has one position."""
    order = np.argsort(scores)
    x = torch.cat([features(model, image) for (image,), _ in batches()]).numpy()
    x = x - x.mean(0)
    z = x @ model.head.weight.detach().double().numpy()[0, :, 0, 0]
    for count in range(1, WIDTH + 1):
        kept = order[count:]
        solved = np.linalg.lstsq(x[:, kept], z, rcond=None)[0]
        rise = ((z - x[:, kept] @ solved) ** 2).mean() / 2  # targets lie at a distance of one on both sides
        assert scores[order[:count]].sum() <= rise + 1e-3 * scores.sum()
    assert scores.sum() == pytest.approx(rise, rel=1e-3)


def features(model, image):
    """What the head reads of an image of one pixel, [1, width]."""
    with torch.no_grad():
        return (model.norm(model.first(image[None])) + model.second(image[None]))[:, :, 0, 0].double()


IN_UNITS_OF_THE_LOSS = {
    "taylor": first_order,
    "fisher": second_order,
    "joint": second_order_together,
    "obs": second_order_after_compensation,
}


@pytest.mark.parametrize("criterion", [name for name, each in CRITERIA.items() if each.loss_units])
def test_units_of_the_loss_are_changes_of_the_loss(criterion, monkeypatch):
    model = Detector()
    batches = batches_around(model)
    if criterion == "obs":
        monkeypatch.setattr(readers, "RIDGE", 1e-9)
        model.levels, batches = 1, batches_around(model, images=20, size=1)
    scores = score(criterion, model, graph_of(model), batches)["first"]
    IN_UNITS_OF_THE_LOSS[criterion](model, batches, scores)
