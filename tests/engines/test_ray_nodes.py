"""A cluster of several nodes: what fits, what nodes must see, and nodes that come and go during a search."""

import io
import time

import pytest
from rich.console import Console

from autoprune import progress
from autoprune.errors import ConfigError, RunError

from .conftest import RAY_WARNINGS, ray_cluster, stopped_clock

pytestmark = [pytest.mark.slow, *RAY_WARNINGS]
TRIALS = 8


@pytest.fixture(scope="module")
def cluster():
    """A head node with room for one worker."""
    with ray_cluster(cpus=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def connection(cluster):
    """A connection to the cluster, as the engine opens one."""
    from autoprune.engines import ray as engine

    with engine._connected(engine.Cluster(cluster.address), ""):
        yield engine


def test_as_many_workers_fit_as_nodes_have_room_for(connection):
    from autoprune.engines.ray_nodes import available_workers

    said = io.StringIO()
    with progress.show(Console(file=said, width=200)):
        assert available_workers(connection.Cluster(workers=1)) == 1
        assert said.getvalue() == ""
        assert available_workers(connection.Cluster(workers=3)) == 1
        assert available_workers(connection.Cluster(workers=3, cpus_per_trial=0.5)) == 2
    assert "3 workers requested, the cluster has room for 1 now" in said.getvalue()
    with pytest.raises(ConfigError, match=r"no Ray node has 64 CPUs .* --cpus-per-trial"):
        available_workers(connection.Cluster(cpus_per_trial=64))


def test_nodes_must_see_the_data_and_have_this_version(connection, tmp_path, monkeypatch):
    from autoprune.engines import ray_nodes

    present, missing = tmp_path / "present", tmp_path / "missing"
    present.write_text("x")
    ray_nodes.check_nodes(connection.Cluster(required_paths=(present, tmp_path)))
    with pytest.raises(RunError, match=rf"node [\d.]+ can't see {missing}; put data and weights on storage"):
        ray_nodes.check_nodes(connection.Cluster(required_paths=(missing,)))
    with pytest.raises(RunError, match=rf"node [\d.]+ can't see {missing}"):  # before a search does any work
        connection.check(connection.Cluster("auto", required_paths=(missing,)))
    monkeypatch.setattr(ray_nodes, "__version__", "0.0.1")
    with pytest.raises(RunError, match=r"node [\d.]+ has autoprune .*, this is 0\.0\.1; install the same"):
        ray_nodes.check_nodes(connection.Cluster())


def test_a_node_without_autoprune_or_that_does_not_answer_is_named(connection, monkeypatch):
    from autoprune.engines import ray_nodes

    def not_installed(paths):
        raise ImportError("No module named 'autoprune'")

    with monkeypatch.context() as patch:
        patch.setattr(ray_nodes, "node_report", not_installed)
        with pytest.raises(RunError, match=r"node [\d.]+ can't run autoprune: .*No module named 'autoprune'"):
            ray_nodes.check_nodes(connection.Cluster())

    def late(answers, timeout):
        raise connection.ray.exceptions.GetTimeoutError

    monkeypatch.setattr(ray_nodes.ray, "get", late)
    with pytest.raises(RunError, match=r"node [\d.]+ does not answer; see `ray status`"):
        ray_nodes.check_nodes(connection.Cluster())


def test_a_function_runs_on_the_node_that_is_named(connection):
    from autoprune.engines.ray_nodes import nodes, run_on

    def here():
        import ray

        return ray.get_runtime_context().get_node_id()

    (head,) = nodes()
    assert connection.ray.get(run_on(head, here)) == head["NodeID"]


def test_a_node_that_joins_is_used_and_one_that_dies_loses_no_trial(
    cluster, make_ledger, evaluator, tmp_path
):
    from autoprune.engines import ray as engine

    log, joined, died = tmp_path / "log", tmp_path / "joined", tmp_path / "died"
    log.touch()

    def nodes():
        return list(dict.fromkeys(log.read_text().split()))

    class Logging(evaluator):
        """Logs its node; waits for the second one once that has joined, and on that one for its death."""

        def evaluate(self, widths, rung, state, repeat=0, rivals=()):
            import ray

            here = ray.get_runtime_context().get_node_id()
            with log.open("a") as lines:
                lines.write(f"{here}\n")
            while here in nodes()[1:] or (joined.exists() and nodes() == [here]):
                time.sleep(0.1)
            return super().evaluate(widths, rung, state, repeat)

    def finished(number):
        if not joined.exists():
            cluster.add_node(num_cpus=1, include_log_monitor=False)
            joined.touch()

    def changed():
        """The second node dies while its worker is running a trial."""
        if len(nodes()) == 2 and not died.exists():
            cluster.remove_node(*cluster.worker_nodes, allow_graceful=False)
            died.touch()

    ledger = make_ledger(trials=TRIALS)
    engine.run(ledger, Logging, finished, engine.Cluster(cluster.address, workers=2), changed, stopped_clock)
    assert len(nodes()) == 2
    assert died.exists()
    assert [record.state for record in ledger.finished()].count("failed") == 0
    assert len({tuple(record.widths.values()) for record in ledger.finished()}) == TRIALS
    losses = [trial.user_attrs.get("losses", 0) for trial in ledger.study.trials]
    assert sum(losses) == 1
