import signal
import subprocess
import sys

import pytest

import autoprune
from autoprune.engines.cluster import Cluster, kill, missing_inputs, node_report, sizes, worker_slots


def test_a_node_with_other_data_is_told_from_one_with_the_same(tmp_path):
    file = tmp_path / "instances_train.json"
    file.write_text("{}")
    here = sizes((file, tmp_path))
    assert missing_inputs(here) is None
    file.write_text("{} ")
    assert missing_inputs(here) == f"has another {file} (3 bytes, here 2)"
    file.unlink()
    assert missing_inputs(here) == f"can't see {file}"


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "workers"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, 4, 0.5, 4),
        ({"CPU": 16.0, "GPU": 1.0}, 2, 0.5, 2),
        ({"CPU": 3.0}, 1, 0, 3),
        ({"CPU": 3.0}, 1, 0.1, 0),
        ({"CPU": 16.0, "GPU": 1.0}, 1, 0.1, 10),  # ten tenths are one
    ],
)
def test_a_node_has_room_for_whole_workers(resources, cpus, gpus, workers):
    assert worker_slots(resources, Cluster(cpus_per_trial=cpus, gpus_per_trial=gpus)) == workers


def test_a_node_reports_its_version_and_what_it_lacks(tmp_path):
    missing = tmp_path / "missing"
    assert node_report(sizes((tmp_path,))) == (autoprune.__version__, None)
    assert node_report(sizes((missing,))) == (autoprune.__version__, f"can't see {missing}")


def test_a_frozen_process_is_killed():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        kill(process.pid)
    assert process.returncode == -signal.SIGKILL


def test_what_runs_on_nodes_imports_no_search():
    """A node that is asked for its version starts a process for it."""
    heavy = ("ray", "optuna", "torch", "pydantic")
    code = f"import sys, autoprune.engines.cluster; print(*(n for n in {heavy} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
