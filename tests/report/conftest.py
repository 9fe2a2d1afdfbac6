"""One real run of a few trials for the page and its browser tests: searched, checked, recovered."""

import pytest

from autoprune.pipeline import search


@pytest.fixture(scope="session")
def run(demo_settings, tmp_path_factory):
    """The run directory; four of its trials are recovered."""
    settings = {
        **demo_settings,
        "budget_gflops": "60%",
        "trials": 5,
        "proxy_images": 3,
        "check_proxies": 4,
        "out": tmp_path_factory.mktemp("runs") / "shown",
    }
    return search(settings).run
