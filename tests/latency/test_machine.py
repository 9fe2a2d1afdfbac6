"""The label holds all that a measured latency depends on."""

from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ConfigError
from autoprune.latency import machine
from autoprune.latency.machine import LatencySetup, processor, versions

SETUP = LatencySetup("torch", torch.device("cpu"), 2, (192, 256), batch=4)


def test_the_label_holds_what_a_figure_depends_on():
    assert SETUP.label == f"{processor()}, 2 threads, torch {torch.__version__}, batch 4, 192x256"
    assert ", 1 thread, " in replace(SETUP, threads=1).label
    threads = torch.get_num_threads()
    assert f", {threads} thread{'s' if threads > 1 else ''}, " in replace(SETUP, threads=None).label


def test_the_label_of_a_detector_has_the_size_that_its_network_sees():
    model = build(ModelSpec(name="retinanet_resnet18_fpn", arguments={"min_size": 96}, num_classes=3)).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].shape[-2:]))
    with torch.no_grad():
        model([torch.rand(3, *SETUP.input_size)])
    ending = ", which the detector itself makes {}x{}".format(*seen)
    assert SETUP.label_of(model) == SETUP.label + ending
    same = replace(SETUP, input_size=tuple(seen))
    assert same.label_of(model) == same.label


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_other_runtimes_are_named_with_their_own_version(runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    assert f", {runtime} {version(runtime)}, " in replace(SETUP, runtime=runtime).label


def test_on_a_gpu_its_name_stands_for_processor_and_threads(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    label = replace(SETUP, device=torch.device("cuda:1")).label
    assert label == f"GPU 1, torch {torch.__version__}, batch 4, 192x256"


def test_a_runtime_without_a_record_has_no_label():
    with pytest.raises(ConfigError, match="no runtime 'tensorrt'"):
        _ = replace(SETUP, runtime="tensorrt").label


def test_the_processor_is_what_the_system_calls_it(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A: fast one\nmodel name\t: another\n")
    monkeypatch.setattr(machine, "CPUINFO", cpuinfo)
    assert processor() == "A: fast one"
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "absent")
    assert processor()


def test_versions_are_those_of_what_makes_a_detector():
    from autoprune import __version__

    assert versions().split(", ") == [
        f"autoprune {__version__}",
        f"torch {torch.__version__}",
        f"torchvision {version('torchvision')}",
    ]


def test_a_vendors_detector_names_the_vendors_library(monkeypatch):
    own = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "9.8.7" if name == "timm" else own(name))
    assert versions("timm:resnet18") == f"{versions()}, timm 9.8.7"
    assert versions("retinanet_resnet50_fpn") == versions("my.package:timm") == versions()
