"""Importing Ultralytics through the adapter leaves no trace in the process."""

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


OLD = """
import sys, ultralytics
ultralytics.__version__ = "8.3.10"
from autoprune.vendors import vendor_of
from autoprune.errors import ModelError
try:
    vendor_of("ultralytics:yolo11n.yaml")
except ModelError as error:
    print(error)
"""


def test_an_old_version_is_refused():
    result = subprocess.run([sys.executable, "-c", OLD], capture_output=True, text=True, check=False)
    assert "ultralytics 8.3.10 is too old: tested with 8.4" in result.stdout, result.stderr
