"""A cluster whose nodes come and go while a search runs."""

import time
import warnings

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
]
TRIALS = 8
ONE_CPU = {"num_cpus": 1, "object_store_memory": 128 * 2**20}


@pytest.fixture
def cluster():
    """A head node with room for one worker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**ONE_CPU, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


def test_a_node_that_joins_is_used_and_one_that_dies_loses_no_trial(
    cluster, make_ledger, evaluator, tmp_path
):
    from autoprune.engines import ray as engine

    log, joined, died = tmp_path / "log", tmp_path / "joined", tmp_path / "died"
    log.touch()

    def nodes():
        return list(dict.fromkeys(log.read_text().split()))

    class Telling(evaluator):
        """Writes down its node; waits for the second one once that has joined, and on that for its death."""

        def evaluate(self, keep, rung, state, repeat=0):
            import ray

            here, end = ray.get_runtime_context().get_node_id(), time.monotonic() + 60
            with log.open("a") as lines:
                lines.write(f"{here}\n")
            while time.monotonic() < end and (here in nodes()[1:] or (joined.exists() and nodes() == [here])):
                time.sleep(0.1)
            return super().evaluate(keep, rung, state, repeat)

    def finished(number):
        if not joined.exists():
            cluster.add_node(**ONE_CPU)
            joined.touch()

    def changed():
        """The second node dies while its worker is at work."""
        if len(nodes()) == 2 and not died.exists():
            cluster.remove_node(*cluster.worker_nodes, allow_graceful=False)
            died.touch()

    ledger = make_ledger(trials=TRIALS)
    engine.run(ledger, Telling, finished, engine.Cluster(cluster.address, workers=2), changed)
    assert len(nodes()) == 2
    assert died.exists()
    assert [record.state for record in ledger.finished()].count("failed") == 0
    assert len({tuple(record.widths.values()) for record in ledger.finished()}) == TRIALS
    losses = [trial.user_attrs.get("losses", 0) for trial in ledger.study.trials]
    assert sum(losses) == 1
