"""What tests of engines share: small Ray clusters, events to wait for, a clock by which nobody is overdue."""

import os
import time
import warnings
from contextlib import contextmanager

import pytest

# Ray's messages for its developers, which are errors elsewhere in these tests.
RAY_WARNINGS = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
]

# For the processes of a Ray that a test starts. Its own limits of time are far above what any machine needs.
RAY_VARIABLES = {
    "RAY_worker_niceness": "0",  # at Ray's 15, workers starve beside the other processes that run tests
    "RAY_prestart_worker_first_driver": "0",  # processes that nobody uses, and that a driver waits for
    "RAY_enable_metrics_collection": "0",
    "RAY_gcs_server_port_wait_time_s": "600",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "600",
    "RAY_health_check_period_ms": "500",  # how soon a killed node is noticed; a slow one has 50 s to answer
}
# The same for clients; read as Ray is imported, here and in processes that tests start.
os.environ.setdefault("RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S", "600")
os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "600")
HANG_GUARD_S = 600  # far above what any machine needs; nothing is tested by it


@contextmanager
def ray_variables():
    """Sets `RAY_VARIABLES` for the processes that are started in the block."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for name, value in RAY_VARIABLES.items():
            patch.setenv(name, value)
        yield patch


@contextmanager
def ray_cluster(cpus, **options):
    """The head node of a cluster, without the processes that serve people and autoscalers; it can grow."""
    with ray_variables():
        from ray.cluster_utils import Cluster

        from autoprune.engines.ray import STORE_BYTES

        head = {"num_cpus": cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        head |= {"no_monitor": True, "include_log_monitor": False, **options}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        yield cluster
        cluster.shutdown()


@contextmanager
def connected_engine(cpus):
    """The Ray engine, connected to a cluster of one node as it connects itself."""
    with ray_cluster(cpus) as cluster:
        from autoprune.engines import ray

        with ray._connected(ray.Cluster(cluster.address), ""):
            yield ray


def wait_until(condition, process=None):
    """Waits for an event; fails if ``process`` ends before it."""
    end = time.monotonic() + HANG_GUARD_S
    while not condition():
        assert process is None or process.poll() is None, f"the process ended with {process.returncode}"
        assert time.monotonic() < end, "the event did not come"
        time.sleep(0.05)


def stopped_clock():
    """For engines whose workers must not be taken for hung ones, however busy the machine is."""
    return 0.0
