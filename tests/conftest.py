"""What several folders share: the demo detector, which has accuracy to lose, on a handful of images."""

import os

import pytest

# Two processes run the tests; were each to use all cores, they would wait for each other most of the time.
# Set before torch is imported, and inherited by the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def demo_settings(tmp_path_factory):
    """Fields of `Config` for a search that takes seconds; `out` is for the test to give."""
    from autoprune import demo_detector
    from autoprune.data.shapes import make_shapes

    data = make_shapes(
        tmp_path_factory.mktemp("shapes"),
        seed=demo_detector.DATA_SEED,
        train=8,
        val=6,
        size=demo_detector.IMAGE_SIZE,
    )
    return {
        "model": demo_detector.MODEL.name,
        "model_arguments": demo_detector.MODEL.arguments,
        "weights": str(demo_detector.WEIGHTS),
        "data": data,
        "device": "cpu",
        "threads": 1,
        "budget_gflops": "70%",
        "rungs": (0, 1),
        "batch_size": 2,
        "importance_images": 2,
        "reconstruct_images": 2,
        "recalibration_images": 4,
        "steps": 2,
    }
