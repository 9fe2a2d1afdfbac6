"""The demo's detector and its validation images."""

import pytest

from autoprune.data.coco import open_data
from autoprune.detectors import load_dense


@pytest.fixture(scope="module")
def detector(demo_settings):
    return load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )[0]


@pytest.fixture(scope="module")
def split(demo_settings):
    return open_data(demo_settings["data"], "val")
