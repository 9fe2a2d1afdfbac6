"""What every engine must do, whatever carries its trials."""

import typing
import warnings

import pytest

from autoprune.config import Config
from autoprune.engines import local
from autoprune.errors import RunError, TrainingError

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
]


def _local():
    yield lambda ledger, load, finished: local.run(ledger, load(), finished)


def _ray():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from autoprune.engines import ray as engine

        engine.ray.init(
            address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        # By its clock no time passes: no worker is taken for a hung one, however busy the machine is.
        yield lambda ledger, load, finished: engine.run(
            ledger, load, finished, engine.Cluster(), clock=lambda: 0.0
        )
        engine.ray.shutdown()


ENGINES = {"local": _local, "ray": _ray}
SLOW = {"ray"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ENGINES],
)
def run(request):
    """Runs trials on one worker: ``run(ledger, load, finished)``."""
    yield from ENGINES[request.param]()


def test_every_engine_that_a_user_can_choose_is_held_to_this_contract():
    assert set(ENGINES) == set(typing.get_args(Config.model_fields["engine"].annotation))


def by_hand(ledger, evaluator):
    """The trials as the ledger and the evaluator define them, without an engine."""
    while (candidate := ledger.ask()) is not None:
        rung, state = 0, None
        try:
            while True:
                metrics, state = evaluator.evaluate(candidate.widths, rung, state, candidate.repeat)
                if not ledger.report(candidate.number, rung, metrics):
                    break
                rung += 1
        except TrainingError as error:
            ledger.fail(candidate.number, str(error))


def results(ledger):
    return [(r.origin, dict(r.widths), r.state, r.reason, list(r.rungs)) for r in ledger.finished()]


def test_the_ledger_decides_the_evaluator_is_loaded_once_and_failures_are_kept(run, make_ledger, evaluator):
    expected, ledger = (make_ledger(trials=10, confirm=2, name=name) for name in ("by-hand", "by-engine"))
    reported = []
    by_hand(expected, evaluator(fails_above=60))
    run(ledger, lambda: evaluator(fails_above=60), reported.append)
    # The metrics hold how often the evaluator was called: it is one object for all trials.
    assert results(ledger) == results(expected)
    assert {record.state for record in ledger.finished()} == {"complete", "stopped", "failed"}
    repeats = [record for record in ledger.records() if record.repeat_of is not None]
    assert reported == [record.number for record in [*ledger.finished(), *repeats]]
    assert [r.rungs for r in repeats] == [r.rungs for r in expected.records() if r.repeat_of is not None]
    assert len(repeats) == 2


def test_a_search_that_is_interrupted_goes_on_with_nothing_lost_and_nothing_twice(
    run, make_ledger, evaluator
):
    def disk_full(number):
        if number == 2:
            raise RunError("the disk is full")

    ledger = make_ledger(trials=6)
    with pytest.raises(RunError, match="disk is full"):
        run(ledger, evaluator, disk_full)
    kept = results(ledger)
    assert len(kept) == 3
    resumed = make_ledger(trials=6)
    run(resumed, evaluator, lambda number: None)
    assert results(resumed)[:3] == kept
    widths = [tuple(record.widths.values()) for record in resumed.finished()]
    assert len(set(widths)) == len(widths) == 6


def test_a_search_that_is_done_runs_nothing_and_can_be_extended(run, make_ledger, evaluator):
    run(make_ledger(trials=2), evaluator, lambda number: None)
    reported = []
    run(make_ledger(trials=2), evaluator, reported.append)
    assert reported == []
    longer = make_ledger(trials=4)
    run(longer, evaluator, reported.append)
    assert [record.number for record in longer.finished()][2:] == reported
    assert len(reported) == 2
