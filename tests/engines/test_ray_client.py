"""A search driven from outside of a cluster, through the client server of a real head node."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from autoprune.engines import local
from autoprune.errors import ConfigError, RunError

from .conftest import RAY_WARNINGS, ray_cluster, ray_variables, stopped_clock, wait_until

pytest.importorskip("grpc", reason="pip install 'autoprune[client]'")
pytestmark = [pytest.mark.slow, *RAY_WARNINGS]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def engine():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from autoprune.engines import ray

        return ray


@pytest.fixture(scope="module")
def address(engine):
    """Of a head node with two CPUs that serves clients."""
    port = free_port()
    with ray_variables() as patch:
        # gRPC's own handlers of a fork abort the new process now and then (ev_epoll1_linux.cc: Check failed).
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
        with ray_cluster(cpus=2, ray_client_server_port=port):
            wait_until(lambda: listens(port))  # the client server is up some time after its node
            yield f"ray://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def skip_where_ray_cannot_fork(engine, monkeypatch):
    """Now and then Ray's client server loses the process that it forks for a client; it runs no code of ours.

    Only what is said after the last try becomes a skip; the tries have a test below.
    """
    real = engine.no_cluster

    def no_cluster(address, error):
        if "Starting Ray client server failed" in str(error):
            pytest.skip("Ray's client server lost the processes that it forked for this client")
        return real(address, error)

    monkeypatch.setattr(engine, "no_cluster", no_cluster)


def listens(port):
    """Whether something listens at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def results(ledger):
    return [(r.origin, dict(r.widths), r.state, [m["map"] for m in r.rungs]) for r in ledger.finished()]


def test_the_cluster_tries_what_the_local_engine_tries_even_where_it_loses_a_worker(
    engine, address, make_ledger, evaluator, tmp_path
):
    flag = str(tmp_path / "killed")

    class Deadly(evaluator):
        """Kills its worker once."""

        def evaluate(self, widths, rung, state, repeat=0, rivals=()):
            if self.evaluations == 2 and not os.path.exists(flag):
                open(flag, "w").close()
                os._exit(1)
            return super().evaluate(widths, rung, state, repeat)

    def disk_full(number):
        numbers.append(number)
        raise RunError("the disk is full")

    here, there = make_ledger(trials=8, name="here"), make_ledger(trials=8, name="there")
    local.run(here, evaluator(fails_above=70), lambda number: None)
    numbers, changes = [], []
    with engine._connected(engine.Cluster(address), ""):
        missing = tmp_path / "missing"
        with pytest.raises(RunError, match=rf"node [\d.]+ can't see {missing}"):  # the nodes are checked
            engine.run(there, evaluator, numbers.append, engine.Cluster(required_paths=(missing,)))
        assert numbers == []

        with pytest.raises(RunError, match="disk is full"):  # the driver's own error ends Tune on the cluster
            engine.run(there, lambda: evaluator(fails_above=70), disk_full, engine.Cluster())
        engine.run(
            there,
            lambda: Deadly(fails_above=70),
            numbers.append,
            engine.Cluster(),
            lambda: changes.append(len(there.finished())),
            stopped_clock,
        )
        assert engine.ray.is_initialized()  # a connection that was there stays
    assert results(there) == results(here)
    assert {record.state for record in there.finished()} >= {"complete", "failed"}
    (requeued,) = [trial.number for trial in there.study.trials if trial.user_attrs.get("requeued")]
    (again,) = [trial.number for trial in there.study.trials if trial.user_attrs.get("losses") == 1]
    assert sorted(numbers) == sorted({*(record.number for record in there.finished()), requeued})
    assert again in numbers
    assert set(range(1, 8)) <= set(changes)  # the status is shown while trials run


def test_what_is_lost_on_the_head_node_ends_the_search_in_one_line(
    engine, address, make_ledger, evaluator, monkeypatch
):
    """The tests below show that the cluster can be used again."""
    from autoprune.engines import ray_client

    class Dying(ray_client.Mailbox):
        async def next(self, answer):
            if answer is not None and answer[0] is False:  # a trial has reached the top
                os._exit(1)
            return await super().next(answer)

    monkeypatch.setattr(ray_client, "Mailbox", Dying)
    with pytest.raises(RunError, match=r"head node failed \(its worker died\); .* same command") as raised:
        engine.run(make_ledger(), evaluator, lambda number: None, engine.Cluster(address))
    assert "\n" not in str(raised.value)
    assert not engine.ray.is_initialized()
    resumed = make_ledger()
    local.run(resumed, evaluator(), lambda number: None)
    assert len(resumed.finished()) == 6


DRIVER = """
    import signal, sys, time, warnings
    warnings.simplefilter("ignore")
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from conftest import FakePlan, ledger_settings
    from autoprune.engines import ray
    from autoprune.study.ledger import Ledger

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us behind "&"
    hangs = Path({folder!r}) / "hangs"

    def load():
        class Hanging:
            evaluations = 0

            def evaluate(self, widths, rung, state, repeat=0, rivals=()):
                self.evaluations += 1
                if self.evaluations > 4:
                    hangs.touch()
                    while True:
                        time.sleep(0.1)
                return {{"map": 0.5, "gflops": 1.0}}, state
        return Hanging()

    ledger = Ledger(Path({folder!r}) / "study.journal", "s", FakePlan(), ledger_settings(trials=50, rungs=2))
    try:
        cluster = ray.Cluster({address!r}, workers={workers})
        ray.run(ledger, load, lambda number: None, cluster, clock=lambda: 0.0)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", flush=True)
"""


@contextmanager
def driver(address, folder, workers):
    """A process that drives a search whose workers hang in their third trials.

    Yields once the first one hangs: at least two trials are finished, and no more than two each ever will be.
    """
    tests = str(Path(__file__).parent.parent)
    script = textwrap.dedent(DRIVER).format(tests=tests, folder=str(folder), address=address, workers=workers)
    environment = {**os.environ, "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "2"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            wait_until((folder / "hangs").exists, process)
            yield process
        finally:
            process.kill()


def test_ctrl_c_is_heard_while_trials_run(engine, address, make_ledger, evaluator, tmp_path):
    with driver(address, tmp_path, workers=1) as process:
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                # Pressed again as a user would: Python drops an interrupt that falls into a destructor.
                process.wait(30)
        assert process.stdout.read() == "interrupted\n"
    with engine._connected(engine.Cluster(address), ""):
        # Both CPUs: it can't begin before the worker is gone.
        assert engine.ray.get(engine.ray.remote(num_cpus=2)(lambda: True).remote())
    resumed = make_ledger(trials=6)
    kept = results(resumed)
    assert len(kept) == 2
    local.run(resumed, evaluator(), lambda number: None)
    assert results(resumed)[:2] == kept
    assert len(resumed.finished()) == 6


def test_a_killed_driver_takes_its_workers_along_and_the_same_search_goes_on(
    engine, address, make_ledger, evaluator, tmp_path
):
    with driver(address, tmp_path, workers=2) as process:
        process.send_signal(signal.SIGKILL)
    resumed = make_ledger(trials=6)
    kept = results(resumed)
    assert 2 <= len(kept) < 6  # more than four where Ray began another worker in place of a slow one
    # Both CPUs in one worker: it can't begin before the others are gone.
    cluster = engine.Cluster(address, cpus_per_trial=2)
    engine.run(resumed, evaluator, lambda number: None, cluster, clock=stopped_clock)
    assert results(resumed)[: len(kept)] == kept
    assert len(resumed.finished()) == 6


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (
            "ray://127.0.0.1:{}",
            r"no Ray cluster at ray://127.0.0.1:\d+: .*refused; start one with `ray start",
        ),
        ("ray://head", r"--address ray://head names no port; `ray start --head` serves clients at 10001"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_in_one_line(
    engine, make_ledger, evaluator, address, problem
):
    cluster = engine.Cluster(address.format(free_port()))
    with pytest.raises((RunError, ConfigError), match=problem) as raised:
        engine.run(make_ledger(), evaluator, lambda number: None, cluster)
    assert "\n" not in str(raised.value)


def test_without_grpcio_the_command_that_installs_it_is_named(engine, make_ledger, evaluator, monkeypatch):
    from autoprune.engines import ray_client

    monkeypatch.setattr(ray_client.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs grpcio: pip install 'autoprune\[client\]', or run the"):
        engine.run(make_ledger(), evaluator, lambda number: None, engine.Cluster("ray://head:10001"))
