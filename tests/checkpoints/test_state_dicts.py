"""Weights are found in whatever wrappers and prefixes trainers save them; of several one is taken by rule."""

import argparse
import collections
import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from autoprune import detectors, progress
from autoprune.checkpoints.read import read_checkpoint
from autoprune.checkpoints.state_dicts import PREFERRED, plain_state, state_for
from autoprune.config import ModelSpec
from autoprune.errors import ModelError

from ..detectors.conftest import SMALL, one_line, shake, small

NAME = "retinanet_resnet18_fpn"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.body(x))


def net(seed=0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    model.body[1].running_mean.normal_()
    return model


WEIGHTS, OTHER = net(0).state_dict(), net(1).state_dict()


def prefixed(prefix, state=WEIGHTS):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def compiled_inside():
    return {name.replace("body.", "body._orig_mod."): tensor for name, tensor in WEIGHTS.items()}


def said(call):
    out = io.StringIO()
    with progress.show(Console(file=out, width=1000)):
        result = call()
    return result, out.getvalue()


def assert_whole(state, expected=WEIGHTS):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


OPTIMIZER = torch.optim.AdamW(net().parameters()).state_dict()
EXACT = {
    "plain": WEIGHTS,
    "compiled": prefixed("_orig_mod."),
    "parallel": prefixed("module."),
    "parallel and compiled": prefixed("module._orig_mod."),
    "compiled and parallel": prefixed("_orig_mod.module."),
    "parallel twice": prefixed("module.module."),
    "a part compiled": compiled_inside(),
    "sharded": prefixed("_fsdp_wrapped_module."),
    "lightning": {"state_dict": prefixed("model."), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    "lightning, compiled": {"state_dict": prefixed("model._orig_mod."), "callbacks": {}},
    "deeper": {"state_dict": prefixed("model.detector.")},
    "averaged": AveragedModel(net()).state_dict(),
    "averaged in a wrapper": {"model_ema": AveragedModel(net()).state_dict()},
    "averaged of a parallel one": {"n_averaged": torch.tensor(3), **prefixed("module.module.")},
    "no dot": prefixed("student_"),
    "any prefix": prefixed("my.own.prefix."),
    "ema": {"ema": WEIGHTS, "epoch": 1},
    "net": {"net": WEIGHTS, "acc": 91.2},
    "weights": {"weights": WEIGHTS},
    "model_ema": {"model_ema": prefixed("module.")},
    "unheard of": {"my_trainer_state": {"what": {"params": WEIGHTS}}},
    "four deep": {"a": {"b": {"c": {"d": prefixed("module.")}}}},
    "in a list": [{"lr": 0.1}, WEIGHTS],
    "in a tuple": (WEIGHTS, 3),
    "with an optimizer": {"model": WEIGHTS, "optimizer": OPTIMIZER, "epoch": 3},
    "beside an epoch": {**WEIGHTS, "epoch": 3, "args": argparse.Namespace()},
    "beside an optimizer": {**WEIGHTS, "optimizer": OPTIMIZER},
    "in parts": {
        part: {n.removeprefix(f"{part}."): t for n, t in WEIGHTS.items() if n.startswith(part)}
        for part in ("body", "head")
    },
    "ordered": collections.OrderedDict(WEIGHTS),
    "parameters": net().state_dict(keep_vars=True),
    "arrays": {name: tensor.numpy() for name, tensor in WEIGHTS.items()},
    "as many others": {"state_dict": prefixed("model."), "loss": {"weight": torch.ones(91)}},
    "twice the same": {"model": WEIGHTS, "ema": copy.deepcopy(WEIGHTS)},
    "profiled": {**WEIGHTS, "total_ops": torch.zeros(1), "body.0.total_params": torch.zeros(1)},
}


@pytest.mark.parametrize("name", EXACT)
def test_weights_that_fit_are_found_wherever_they_lie(tmp_path, name):
    torch.save(EXACT[name], tmp_path / "w.pt")
    content = read_checkpoint(tmp_path / "w.pt")
    state, text = said(lambda: state_for(net(2).state_dict(), content, "w.pt"))
    assert text == ""
    whole = {key: tensor for key, tensor in state.items() if "total_" not in key}
    assert_whole(whole)


def test_no_counters_and_no_graph_is_needed():
    without = {name: tensor for name, tensor in WEIGHTS.items() if "tracked" not in name}
    state = state_for(net().state_dict(), {"model": prefixed("module.", without)}, "w.pt")
    assert_whole(state, without)
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize(
    ("content", "taken", "other"),
    [
        ({"ema": OTHER, "model": WEIGHTS}, "model", "ema"),
        ({"model_ema": prefixed("module.", OTHER), "model": prefixed("module.")}, "model", "model_ema"),
        ({"net": WEIGHTS, "ema": OTHER}, "net", "ema"),
        ({"state": {"model": {**WEIGHTS, "model": OTHER}}}, "state.model", "state.model.model"),
        ({"state_dict_ema": OTHER, "state_dict": WEIGHTS}, "state_dict", "state_dict_ema"),
        ({"state_dict": {**prefixed("ema_model.", OTHER), **prefixed("model.")}}, "state_dict.model",
         "state_dict.ema_model"),
        ({"trainer": {"weights": WEIGHTS, "swa": OTHER}}, "trainer.weights", "trainer.swa"),
        ({"state_dict": {**WEIGHTS, "teacher": OTHER}}, "state_dict", "state_dict.teacher"),
    ],
)  # fmt: skip
def test_of_two_sets_one_is_taken_and_named_and_the_key_takes_the_other(content, taken, other):
    state, text = said(lambda: state_for(net().state_dict(), content, "w.pt"))
    assert_whole({name: tensor for name, tensor in state.items() if name in WEIGHTS})
    assert f"`{taken}` is taken; --weights-key {other} takes another" in text
    assert f"`{other}`" in text
    assert_whole(state_for(net().state_dict(), content, "w.pt", other), OTHER)
    chosen, text = said(lambda: state_for(net().state_dict(), content, "w.pt", taken))
    assert_whole({name: tensor for name, tensor in chosen.items() if name in WEIGHTS})


@pytest.mark.parametrize("key", ["ema", "state.ema", "state.ema.", "ema.module"])
def test_a_key_may_be_a_name_or_a_path(key):
    content = {"state": {"ema": prefixed("module.", OTHER), "model": WEIGHTS}}
    state, text = said(lambda: state_for(net().state_dict(), content, "w.pt", key))
    assert_whole(state, OTHER)
    assert text == ""


def test_the_outermost_tensors_come_before_all_others():
    content = {**WEIGHTS, "model": OTHER, "epoch": 1}
    state, text = said(lambda: state_for(net().state_dict(), content, "w.pt"))
    assert_whole(state)
    assert (
        "w.pt holds the outermost level and `model`: the outermost level is taken; --weights-key model"
        in text
    )
    assert_whole(state_for(net().state_dict(), content, "w.pt", "model"), OTHER)


def test_several_sets_of_which_none_is_preferred_are_refused():
    with pytest.raises(ModelError) as error:
        state_for(net().state_dict(), {"ema": OTHER, "swa": WEIGHTS}, "w.pt")
    assert one_line(error) == (
        "w.pt holds several sets of weights that fit, `ema` and `swa`; choose one with --weights-key ema "
        "(YAML: weights_key)"
    )
    assert not {"ema", "model_ema", "swa", "teacher"} & set(PREFERRED)


def test_a_key_that_is_not_there_is_refused_with_those_that_are():
    content = {"model": WEIGHTS, "ema": OTHER, "epoch": 3}
    with pytest.raises(ModelError) as error:
        state_for(net().state_dict(), content, "w.pt", "emma")
    assert one_line(error).startswith("w.pt holds no tensors under `emma`, but under ema, model; give one of")


def test_tensors_beside_the_models_are_named():
    content = {"state_dict": {**prefixed("model."), "criterion.weight": torch.ones(3)}}
    state, text = said(lambda: state_for(net().state_dict(), content, "w.pt"))
    assert_whole(state)
    assert "under `state_dict.model` are loaded; the others are not: state_dict.criterion.weight" in text


def test_tensors_among_the_models_stay_and_are_refused_when_they_are_loaded(tmp_path):
    """A deeper network has all tensors of a shallower one."""
    state = state_for(
        net().state_dict(), prefixed("module.", {**WEIGHTS, "body.2.weight": torch.ones(1)}), "w.pt"
    )
    assert "body.2.weight" in state


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_loaded_as_float32(dtype):
    content = {"model": {name: t.to(dtype) if t.is_floating_point() else t for name, t in WEIGHTS.items()}}
    state, text = said(lambda: state_for(net().state_dict(), content, "w.pt"))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    rounded = "w.pt holds float64 numbers; they are rounded to float32" in text
    assert rounded == (dtype == torch.float64)


def test_a_tensor_of_two_names_may_be_stored_under_one(tmp_path):
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.again = self.head

    model, path = Tied(), tmp_path / "w.safetensors"
    save_model(model, path)
    content = read_checkpoint(path)
    assert len(content) == len(model.state_dict()) - 2
    assert_whole(state_for(Tied().state_dict(), content, "w"), model.state_dict())


@pytest.mark.parametrize("name", ["plain", "parallel", "lightning", "averaged", "four deep"])
def test_a_model_in_a_wrapper_takes_weights_without_it(name):
    wrapped = nn.ModuleDict({"detector": nn.ModuleDict({"inner": net(2)})})
    state = state_for(wrapped.state_dict(), EXACT[name], "w.pt")
    assert_whole(state, prefixed("detector.inner."))


def test_a_compiled_model_takes_weights_of_a_plain_one_and_a_plain_one_those_of_a_compiled_one():
    parts = nn.Module()
    parts.body, parts.head = nn.ModuleDict({"_orig_mod": net(2).body}), net(2).head
    assert_whole(state_for(parts.state_dict(), WEIGHTS, "w.pt"), compiled_inside())
    assert_whole(state_for(parts.state_dict(), compiled_inside(), "w.pt"), compiled_inside())


def test_a_file_that_holds_itself_ends(tmp_path):
    content = {"model": WEIGHTS}
    content["self"] = content
    torch.save(content, tmp_path / "w.pt")
    assert_whole(state_for(net().state_dict(), read_checkpoint(tmp_path / "w.pt"), "w.pt"))


@pytest.mark.parametrize("content", [{}, [], 3, None, {"model": {}}, {"epoch": 3, "names": ["a"]}])
def test_what_holds_no_tensors_is_no_state_dict(content):
    for read in (
        lambda: state_for(net().state_dict(), content, "w.pt"),
        lambda: plain_state(content, "w.pt"),
    ):
        with pytest.raises(ModelError) as error:
            read()
        assert "w.pt" in one_line(error)
        assert "state dict" in one_line(error)


@pytest.mark.parametrize("name", ["compiled", "parallel and compiled", "ema", "net", "model_ema", "plain"])
def test_a_state_dict_of_an_unknown_model_loses_what_wrappers_add(name):
    assert_whole(plain_state(EXACT[name], "w.pt"))


# whole detectors


def reference_checkpoint(model, **more):
    """What torchvision's references/detection/train.py saves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 22], gamma=0.1)
    args = argparse.Namespace(
        data_path="/datasets01/COCO", model=NAME, device="cuda", lr_steps=[16, 22], output_dir=Path("."),
        distributed=False, gpu=0, best=np.float64(0.31), weights=None,
    )  # fmt: skip
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "args": args,
        "epoch": 25,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        **more,
    }


def test_the_checkpoint_of_torchvisions_reference_script_is_read(tmp_path):
    model = shake(small())
    torch.save(reference_checkpoint(model), tmp_path / "model_25.pth")
    loaded, spec = detectors.load_dense(NAME, SMALL, None, "auto", tmp_path / "model_25.pth")
    assert spec == ModelSpec(name=NAME, arguments=SMALL, num_classes=4)
    assert_whole(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_classes_and_norms_are_read_off_weights_in_wrappers(tmp_path, norm):
    model, average = (shake(small(classes=7, norm=norm)) for _ in range(2))
    average.head.classification_head.cls_logits.bias.data.fill_(0.25)
    averaged = {"n_averaged": torch.tensor(9), **prefixed("module.", average.state_dict())}
    content = reference_checkpoint(model, model_ema=averaged)
    torch.save({"state": content}, tmp_path / "w.ckpt")
    for key, expected in ((None, model), ("model_ema", average)):
        (loaded, spec), text = said(
            lambda key=key: detectors.load_dense(
                NAME, SMALL, None, "auto", tmp_path / "w.ckpt", weights_key=key
            )
        )
        assert (spec.num_classes, spec.norm) == (7, norm)
        assert_whole(loaded.state_dict(), expected.state_dict())
        assert ("`state.model` is taken" in text) is (key is None)


def test_weights_of_another_detector_are_compared_without_their_wrappers(tmp_path):
    other = small(name="fcos_resnet18_fpn").state_dict()
    torch.save({"ema": prefixed("module._orig_mod.", other)}, tmp_path / "w.pt")
    with pytest.raises(ModelError) as error:
        detectors.load_dense(NAME, SMALL, 4, "auto", tmp_path / "w.pt")
    assert "their keys are those of fcos_resnet18_fpn, so give --model" in one_line(error)
    mine = small().state_dict()
    missing = [name for name in mine if f"{name} is missing" in str(error.value)]
    extra = [name for name in other if f"{name} is not in the model" in str(error.value)]
    assert (len(missing), len(extra)) == (5, 5)
    most = len({n for n in mine if not n.endswith("tracked")} - set(other)) - 5
    assert f"{most} more like that" in str(error.value)
    assert "_orig_mod" not in str(error.value)


def test_numbers_that_need_a_scale_are_refused_by_their_tensor():
    model = nn.Linear(2, 2).state_dict()
    for kind in (torch.float16, torch.bfloat16):
        halved = {name: value.to(kind) for name, value in model.items()}
        loaded = state_for(model, halved, "a.pt")
        assert all(torch.equal(loaded[name], halved[name].float()) for name in model)
    eight = {**model, "weight": model["weight"].to(torch.float8_e5m2)}
    with pytest.raises(ModelError, match=r"a.pt: `weight` holds float8_e5m2 numbers, which need a scale"):
        state_for(model, eight, "a.pt")
