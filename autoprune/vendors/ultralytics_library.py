"""Ultralytics itself: imported without a trace elsewhere, and the names of it that the other modules use."""

import copy
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from autoprune.errors import ModelError
from autoprune.process import loggers_at

OLDEST = (8, 4, 150)
_OFF = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
"""What keeps the import from looking for a network, from installing packages and from printing."""


@contextmanager
def _leaving_no_trace() -> Iterator[None]:
    """Environment, warning filters and print options stay as they are: the import sets its own of all."""
    environment, save, open_image = dict(os.environ), torch.save, Image.open
    torch_options, numpy_options = copy.copy(torch._tensor_str.PRINT_OPTS), np.get_printoptions()
    try:
        with warnings.catch_warnings():
            os.environ.update(_OFF)
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch._tensor_str.PRINT_OPTS, torch.save, Image.open = torch_options, save, open_image
        np.set_printoptions(**numpy_options)


_IMPORTED_BEFORE = "ultralytics.utils" in sys.modules

with _leaving_no_trace():
    import ultralytics

    VERSION = str(ultralytics.__version__)
    if (numbers := tuple(map(int, re.findall(r"\d+", VERSION)[:3]))) and numbers < OLDEST:
        raise ModelError(
            f"ultralytics {VERSION} is older than {'.'.join(map(str, OLDEST))}; pip install -U ultralytics"
        )
    from ultralytics import utils
    from ultralytics.cfg import get_cfg
    from ultralytics.models import yolo
    from ultralytics.models.rtdetr.train import RTDETRTrainer
    from ultralytics.nn import tasks
    from ultralytics.nn.modules import head as heads
    from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, ROOT, YAML
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import xywh2xyxy, xywhr2xyxyxyxy

if not _IMPORTED_BEFORE:  # it prints for its user as if it were imported without us
    utils.VERBOSE = utils.env_bool("YOLO_VERBOSE", True)
    utils.set_logging(LOGGER.name, verbose=utils.VERBOSE)

__all__ = [
    "DEFAULT_CFG_DICT",
    "ROOT",
    "VERSION",
    "YAML",
    "RTDETRTrainer",
    "get_cfg",
    "heads",
    "non_max_suppression",
    "quiet",
    "tasks",
    "xywh2xyxy",
    "xywhr2xyxyxyxy",
    "yolo",
]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's log lines below errors."""
    with loggers_at(logging.ERROR, LOGGER):
        yield
