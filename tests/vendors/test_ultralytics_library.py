"""Importing Ultralytics through the adapter leaves no trace in the process."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("ultralytics")

CHECK = """
import json, os, sys, warnings
import numpy, torch
import autoprune.errors, autoprune.checkpoints.read, autoprune.vendors, torchvision
import cv2, sympy, torch._dynamo  # they change the environment and the filters themselves
def state():
    filters = [str(entry) for entry in warnings.filters]
    return [dict(os.environ), filters, str(vars(torch._tensor_str.PRINT_OPTS)), str(numpy.get_printoptions()),
            torch.get_num_threads(), str(torch.save), torch.get_default_dtype().__str__(),
            torch.are_deterministic_algorithms_enabled()]
before = state()
import autoprune.vendors.ultralytics
after = state()
assert before == after, [(a, b) for a, b in zip(before, after) if a != b]
import ultralytics.utils
print(json.dumps([ultralytics.utils.ONLINE, ultralytics.utils.AUTOINSTALL]))
"""


def test_the_import_changes_nothing_prints_nothing_and_looks_for_no_network():
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("[false, false]\n", "")


PRINTS = """
import json, logging, sys
if sys.argv[1] == "adapter":
    import torch
    import autoprune.vendors.ultralytics
    from autoprune.detectors import load_dense
    detector, _ = load_dense("ultralytics:yolo11n.yaml", num_classes=2)  # which stays quiet
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    detector.train()([torch.rand(3, 64, 64)], [target])
import ultralytics.utils as utils
handlers = [(type(each).__name__, each.level) for each in utils.LOGGER.handlers]
print(json.dumps([utils.VERBOSE, utils.LOGGER.level, utils.LOGGER.propagate, handlers]))
"""


@pytest.mark.parametrize("verbose", [None, "false", "true"])
def test_ultralytics_prints_for_its_user_as_if_it_were_imported_alone(verbose):
    unset = {name: value for name, value in os.environ.items() if name != "YOLO_VERBOSE"}
    environment = {**unset, "YOLO_OFFLINE": "true", **({} if verbose is None else {"YOLO_VERBOSE": verbose})}
    alone, adapter = (
        subprocess.run(
            [sys.executable, "-c", PRINTS, which],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        for which in ("alone", "adapter")
    )
    assert adapter == alone


OLD = """
import sys, ultralytics
ultralytics.__version__ = sys.argv[1]
from autoprune.vendors import vendor_of
from autoprune.errors import ModelError
try:
    vendor_of("ultralytics:yolo11n.yaml")
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize("version", ["8.3.10", "8.4.149", "8.4.150rc1"])
def test_an_old_version_is_refused_and_a_candidate_for_a_release_is_not(version):
    code = [sys.executable, "-c", OLD, version]
    result = subprocess.run(code, capture_output=True, text=True, check=False)
    old = f"ultralytics {version} is older than 8.4.150"
    assert (old in result.stdout) == (version != "8.4.150rc1"), result.stderr
    assert result.returncode == 0, result.stderr
