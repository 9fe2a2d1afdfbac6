"""The files that start a cluster: read by Ray's own checks, or run with stand-ins for programs."""

import json
import os
import re
import shlex
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import yaml

from autoprune.cli.settings import flag
from autoprune.config import Config, make_config

CLUSTER = Path(__file__).parent.parent / "scripts" / "cluster"


def settings_of(command):
    """The fields that a command line of `autoprune search` sets; unknown flags raise."""
    words = shlex.split(command.replace("\\\n", " "))
    words = words[words.index("search") + 1 :]
    fields = {flag(name): name for name in Config.model_fields}
    given = dict(zip(words[::2], words[1::2], strict=True))
    given.pop("--config")
    return make_config(**{fields[name]: value for name, value in given.items()})


def test_every_line_to_edit_is_marked():
    for path in CLUSTER.iterdir():
        assert "EDIT" in path.read_text(), path.name


@pytest.mark.filterwarnings("ignore")
def test_ray_up_takes_its_yaml():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private.util import prepare_config, validate_config

        text = (CLUSTER / "ray-up.yaml").read_text()
        prepared = prepare_config(yaml.safe_load(text))
        validate_config(prepared)
    assert prepared["provider"]["worker_ips"] == ["10.0.0.2", "10.0.0.3"]
    command = re.search(r"'[^']*(autoprune search [^']*)'", text.replace("\n#", "\n")).group(1)
    assert settings_of(command).address == "auto"


def test_the_kubernetes_job_asks_for_no_more_than_its_nodes_have():
    job = yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]

    settings = settings_of(job["spec"]["entrypoint"])
    (worker,) = group["template"]["spec"]["containers"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    room = worker["resources"]["limits"]
    each = min(
        int(room["nvidia.com/gpu"]) / settings.gpus_per_trial, int(room["cpu"]) / settings.cpus_per_trial
    )
    assert settings.workers == group["replicas"] * int(each)
    assert worker["image"] == head["image"]

    # The run directory and the config lie on the volume that all pods mount.
    for template in (cluster["headGroupSpec"]["template"], group["template"]):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
        assert set(mounts.values()) <= set(volumes)
    assert settings.out.is_relative_to("/shared")


STAND_IN = """#!/usr/bin/env python3
import json, os, signal, sys, time
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "scontrol":
    print("node1\\nnode2\\nnode3")
if name == "hostname":
    print("10.0.0.1 fe80::1")
if name == "ray" and sys.argv[1] == "status" and os.environ["SEARCH"] == "never begins":
    print("Traceback", "AuthenticationError: the token is another", sep="\\n", file=sys.stderr)
    sys.exit(1)
if name == "ray" and sys.argv[1] == "status":
    with open(os.environ["CALLS"]) as calls:
        up = sum(json.loads(line)[:2] == ["ray", "start"] for line in calls if line.endswith("\\n"))
    print("Active:", *(f" 1 node_{node}" for node in range(up)), sep="\\n")
    sys.exit(0 if up else 1)
if name == "ray" and sys.argv[1] == "start":
    with open(os.environ["CALLS"] + ".tokens", "a") as tokens:
        print(os.environ["RAY_AUTH_MODE"], os.environ.get("RAY_AUTH_TOKEN"), file=tokens)
if name == "srun":
    command = [word for word in sys.argv[1:] if not word.startswith(("--nodes", "--nodelist", "--overlap"))]
    command = command[1:] if command[0].startswith("--ntasks") else command
    os.execvp(command[0], command)
if name == "autoprune":
    def stop(*_):
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(json.dumps(["stopped"]) + "\\n")
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    open(os.environ["CALLS"] + ".ready", "w").close()
    while os.environ["SEARCH"] == "runs until it is stopped":
        time.sleep(0.05)
    sys.exit(3)
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts the script as Slurm would, on three nodes; `calls()` is what it called."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("srun", "scontrol", "ray", "autoprune", "hostname"):
        (bin_folder / name).write_text(STAND_IN)
        (bin_folder / name).chmod(0o755)
    log = tmp_path / "calls"

    def start(search, **variables):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")},
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "CALLS": str(log),
            "SEARCH": search,
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "4",
            **variables,
        }
        arguments = ["--config", "coco.yaml", "--out", "/shared/runs/a b"]
        pipes = {"stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", str(CLUSTER / "search.slurm"), *arguments], env=environment, **pipes)

    start.calls = lambda: [json.loads(line) for line in log.read_text().splitlines()]
    start.tokens = lambda: [line.split() for line in Path(f"{log}.tokens").read_text().splitlines()]
    start.ready = tmp_path / "calls.ready"
    return start


def test_the_slurm_script_starts_a_node_each_and_the_search_once(slurm):
    script = slurm("ends at once")
    _, said = script.communicate()
    assert script.returncode == 3  # the search's own exit code
    calls = slurm.calls()
    started = [call for call in calls if call[:2] == ["ray", "start"]]
    assert len(started) == 3
    (head,) = [call for call in started if "--head" in call]
    assert head[-3:] == ["--head", "--node-ip-address=10.0.0.1", "--port=6379"]
    assert [call[-1] for call in started if call != head] == ["--address=10.0.0.1:6379"] * 2
    assert all({"--block", "--num-cpus=16", "--num-gpus=4"} <= set(call) for call in started)
    (search,) = [call for call in calls if call[0] == "autoprune"]
    assert search[1:] == shlex.split(
        "search --engine ray --address 10.0.0.1:6379 --workers 12 --gpus-per-trial 1 --cpus-per-trial 4 "
        "--config coco.yaml --out '/shared/runs/a b'"
    )

    (mode, token), *others = slurm.tokens()  # one for the job, which is said nowhere
    assert (mode, len(token)) == ("token", 64)
    assert others == [[mode, token]] * 2
    assert token not in said + json.dumps(calls)


def test_the_users_own_choice_of_authentication_stays(slurm):
    slurm("ends at once", RAY_AUTH_MODE="disabled").communicate()
    assert slurm.tokens() == [["disabled", "None"]] * 3


def test_a_ray_that_does_not_come_up_ends_the_job_with_the_reason(slurm):
    script = slurm("never begins", START_S="0")
    _, said = script.communicate()
    assert script.returncode == 1
    assert said == (
        "Ray is not up on 1 of 3 nodes after 0 s (START_S); "
        "ray status: AuthenticationError: the token is another\n"
    )
    assert "autoprune" not in [call[0] for call in slurm.calls()]


def test_slurms_term_stops_the_search_which_writes_and_ends(slurm):
    script = slurm("runs until it is stopped")
    while not slurm.ready.exists():
        assert script.poll() is None
        time.sleep(0.05)
    script.terminate()
    script.communicate()
    assert script.returncode == 130
    assert ["stopped"] in slurm.calls()
