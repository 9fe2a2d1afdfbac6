"""Detectors by name or from a user's factory, and their two kinds of norm."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn
from torchvision.models import detection

from autoprune import detectors, progress
from autoprune.config import ModelSpec
from autoprune.detectors.factories import outline
from autoprune.errors import ModelError
from autoprune.graph import analyze

from .conftest import SMALL, assert_same, features, one_line, shake, small


def test_every_torchvision_detector_has_a_name():
    builders = {name for name in dir(detection) if callable(getattr(detection, name)) and "_fpn" in name}
    builders |= {"ssd300_vgg16", "ssdlite320_mobilenet_v3_large"}
    assert {name for name in builders if name.islower()} <= set(detectors.names())


def test_a_torchvision_name_gives_torchvisions_own_keys_without_a_download():
    spec = ModelSpec(name="fcos_resnet50_fpn", num_classes=3, arguments={"min_size": 100})
    mine = detectors.build(spec)
    reference = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert {name: tensor.shape for name, tensor in mine.state_dict().items()} == shapes
    assert mine.transform.min_size == (100,)


def test_the_seed_decides_fresh_weights_and_leaves_the_callers_generator_alone():
    spec = ModelSpec(name="retinanet_resnet18_fpn", arguments=SMALL, num_classes=2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (detectors.build(spec, seed).backbone.body.conv1.weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("retinanet_resnet18", {}, "did you mean retinanet_resnet18_fpn"),
        ("resnet18", {}, "unknown model 'resnet18'"),
        ("retinanet_resnet18_fpn", {"min_sise": 64}, "no `min_sise`; valid: min_size"),
        ("retinanet_resnet50_fpn", {"min_sise": 64}, "no `min_sise`; valid: min_size"),
        ("ssdlite320_mobilenet_v3_large", {"widht_mult": 1}, "no `widht_mult`"),
        ("retinanet_resnet18_fpn", {"weights": "x"}, "cannot hold `weights`"),
        ("retinanet_resnet18_fpn", {"returned_layers": [2, 4]}, "must be consecutive"),
        ("retinanet_resnet18_fpn", {"returned_layers": []}, "must be consecutive"),
        ("retinanet_resnet18_fpn", {"anchor_sizes": [8, 16]}, "needs 5 entries"),
        ("fcos_resnet18_fpn", {"fpn_channels": 40}, "failed to build"),
        ("retinanet_resnet18_fpn", {"fpn_channels": 2**40}, "out of memory while building retinanet_res"),
    ],
)
def test_a_wrong_name_or_argument_is_refused(name, arguments, message):
    with pytest.raises(ModelError) as error:
        detectors.build(ModelSpec(name=name, arguments=arguments, num_classes=2))
    assert message in one_line(error)


# norms


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_norms_change_kind_and_not_the_outputs(name):
    arguments = SMALL if "resnet18" in name else {}
    model = shake(detectors.build(ModelSpec(name=name, arguments=arguments, num_classes=3)))
    before, state = features(model), {k: v.clone() for k, v in model.state_dict().items()}
    frozen = detectors.with_norm(model, "frozen")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    again = detectors.with_norm(frozen, "batch")
    for converted in (frozen, again):
        assert_same(features(converted), before)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items()), "the argument is unchanged"


@pytest.mark.parametrize("kind", ["batch", "frozen"])
def test_conversion_is_exact_up_to_round_off(kind):
    """In float64, where round-off is 1e-16, whichever way the conversion goes."""
    model = shake(small(norm=kind)).double()
    converted = detectors.with_norm(model, "frozen" if kind == "batch" else "batch")
    image = torch.rand((1, 3, 64, 64), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = (list(each.eval().backbone(image).values()) for each in (converted, model))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_both_kinds_of_norm_have_the_same_groups_and_gflops(name):
    """So a policy that was found with one kind can be trained with the other."""
    arguments = SMALL if "resnet18" in name else {}
    graphs = []
    for kind in ("batch", "frozen"):
        model = detectors.build(ModelSpec(name=name, arguments=arguments, num_classes=3, norm=kind)).eval()
        graphs.append(analyze(model, detectors.detector_inputs((64, 64))))
    first, second = graphs
    assert list(first.prunable) == list(second.prunable)
    for group, other in zip(first.prunable.values(), second.prunable.values(), strict=True):
        assert (group.width, group.unit) == (other.width, other.unit)
        one, two = (
            {(tensor, axis): index.tolist() for tensor, axis, index in each.members}
            for each in (group, other)
        )
        assert one == two
    assert first.gflops() == second.gflops()


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet18_fpn"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_an_outline_has_the_tensors_of_the_detector_without_their_values(name, norm):
    spec = ModelSpec(name=name, num_classes=3, norm=norm)
    state, built = outline(spec).state_dict(), detectors.build(spec).state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    assert {n: (t.shape, t.dtype) for n, t in state.items()} == {
        n: (t.shape, t.dtype) for n, t in built.items()
    }


# a user's factory


def test_a_factory_in_the_current_folder_gets_the_number_of_classes_where_it_takes_it(my_package):
    def width(name, **arguments):
        return detectors.build(ModelSpec(name=name, num_classes=3, arguments=arguments)).out_channels

    assert width("mydetector:sized") == 12
    assert width("mydetector:sized", width=2) == 6
    assert width("mydetector:fixed") == 4
    assert width("mydetector:any_of") == 3
    assert width("torch.nn:Conv2d", in_channels=1, out_channels=9, kernel_size=1) == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuchmodule:make", "no module 'nosuchmodule'"),
        ("mydetector.sub:make", "no module 'mydetector.sub'"),
        (
            "brokenmodule:make",
            "importing it failed with ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("mydetector:missing", "no function 'missing'"),
        ("mydetector:number", "no function 'number'"),
        ("mydetector:", "package.module:function"),
        (":make", "package.module:function"),
        ("mydetector:broken", "RuntimeError: two lines"),
        ("mydetector:text", "returned a str"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_in_one_line(my_package, name, message):
    with pytest.raises(ModelError) as error:
        detectors.build(ModelSpec(name=name, num_classes=2))
    assert message in one_line(error)
    assert name in one_line(error)


def test_what_a_factory_prints_goes_to_standard_error(my_package, capfd):
    """By Python and by C, when it is imported, when it is looked up, and when it builds."""
    (my_package / "mydetector.py").write_text(
        "import os\n"
        "from torch import nn\n"
        "print('importing')\n"
        "def __getattr__(name):\n"
        "    print('looking up')\n"
        "    def make():\n"
        "        print('building')\n"
        "        os.write(1, b'below Python\\n')\n"
        "        return nn.Conv2d(3, 4, 1)\n"
        "    return make\n"
    )
    detectors.build(ModelSpec(name="mydetector:lazy", num_classes=2))
    assert capfd.readouterr() == ("", "importing\nlooking up\nbuilding\nbelow Python\n")


@pytest.mark.parametrize(
    ("error", "shown"),
    [("SystemExit(0)", "SystemExit: 0"), ("type('Odd', (BaseException,), {})('x')", "Odd: x")],
)
@pytest.mark.parametrize("place", ["module", "factory"])
def test_a_detector_that_ends_the_program_is_refused(my_package, place, error, shown):
    name = f"ends_{place}_{shown[0]}"
    indent = "" if place == "module" else "    "
    (my_package / f"{name}.py").write_text(f"def make():\n    pass\n{indent}raise {error}\n")
    with pytest.raises(ModelError) as caught:
        detectors.build(ModelSpec(name=f"{name}:make", num_classes=2))
    assert name in one_line(caught)
    assert shown in one_line(caught)


@pytest.mark.parametrize("place", ["module", "factory"])
def test_an_interrupt_while_a_detector_is_built_is_one(my_package, place):
    indent = "" if place == "module" else "    "
    (my_package / f"stopped_{place}.py").write_text(
        f"def make():\n    pass\n{indent}raise KeyboardInterrupt\n"
    )
    with pytest.raises(KeyboardInterrupt):
        detectors.build(ModelSpec(name=f"stopped_{place}:make", num_classes=2))


@pytest.mark.parametrize("how", ["half()", "bfloat16()", "double()"])
def test_a_model_of_another_precision_is_cast_to_float32_once_and_said(my_package, how):
    name = f"precise_{how[:4]}"
    (my_package / f"{name}.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(num_classes):\n"
        "    model = nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.BatchNorm2d(num_classes))\n"
        "    model.register_buffer('steps', torch.ones(2, dtype=torch.int64))\n"
        f"    return model.{how}\n"
    )
    torch.save(nn.Sequential(nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7)).half().state_dict(), "w.pt")
    out = io.StringIO()
    state = {**torch.load("w.pt"), "steps": torch.ones(2, dtype=torch.int64)}
    torch.save(state, "w.pt")
    with progress.show(Console(file=out, width=400)):
        model, spec = detectors.load_dense(f"{name}:make", {}, None, "auto", "w.pt")
    assert spec.num_classes == 7
    kinds = {tensor.dtype for tensor in model.state_dict().values()}
    assert kinds == {torch.float32, torch.int64}
    assert torch.equal(model[0].weight, state["0.weight"].float())
    assert model(torch.rand(1, 3, 4, 4)).dtype == torch.float32
    kind = {"half()": "float16", "bfloat16()": "bfloat16", "double()": "float64"}[how]
    assert out.getvalue().count(f"{name}:make returns a model in {kind}; it is cast to float32") == 1


def test_a_model_in_float32_is_not_said_to_be_cast(my_package):
    out = io.StringIO()
    with progress.show(Console(file=out, width=400)):
        detectors.build(ModelSpec(name="mydetector:fixed", num_classes=2))
    assert out.getvalue() == ""
