"""What every engine must do, whatever carries its trials."""

import contextlib
import math
import typing

import numpy as np
import pytest

from autoprune.config import Config
from autoprune.data.rivals import RESAMPLES, encode_maps
from autoprune.engines import watchdog
from autoprune.engines.cluster import Cluster
from autoprune.engines.table import ENGINES
from autoprune.errors import RunError, TrainingError

from ..engines.conftest import RAY_WARNINGS, connected_engine

pytestmark = RAY_WARNINGS

# What an engine needs around it in these tests, where it needs anything.
AROUND = {"ray": lambda: connected_engine(cpus=1)}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in AROUND else ()) for name in ENGINES],
)
def run(request):
    """Runs trials on one worker: ``run(ledger, load, finished)``."""
    with contextlib.ExitStack() as stack:
        if request.param in AROUND:
            stack.enter_context(AROUND[request.param]())
        # No worker is taken for a hung one, however busy the machine is.
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(watchdog, "MIN_LIMIT_S", math.inf)
        engine = ENGINES[request.param]
        yield lambda ledger, load, finished: engine.run(ledger, load, finished, Cluster(), lambda: None)


@pytest.fixture
def each(run, request):
    """Calls a function with items on one worker: ``each(load, items)``."""
    name = request.node.callspec.params["run"]
    return lambda load, items: ENGINES[name].each(load, items, Cluster())


def test_every_engine_that_a_user_can_choose_is_in_the_table():
    assert set(ENGINES) == set(typing.get_args(Config.model_fields["engine"].annotation))


def by_hand(ledger, evaluator):
    """The trials as the ledger and the evaluator define them, without an engine."""
    while (candidate := ledger.ask()) is not None:
        rung, state = 0, None
        try:
            while True:
                rivals = candidate.rivals_at(rung)
                metrics, state = evaluator.evaluate(candidate.widths, rung, state, candidate.repeat, rivals)
                if not ledger.report(candidate.number, rung, metrics):
                    break
                rung += 1
        except TrainingError as error:
            ledger.fail(candidate.number, str(error))


def results(ledger):
    return [(r.origin, dict(r.widths), r.state, r.reason, list(r.rungs)) for r in ledger.finished()]


def test_trials_race_those_that_they_must_beat(run, make_ledger, evaluator):
    maps = encode_maps(np.full((1, 1 + RESAMPLES), 0.5))

    class Racing(evaluator):
        """Gives up where a rival that costs no more is better."""

        def evaluate(self, widths, rung, state, repeat=0, rivals=()):
            metrics, state = super().evaluate(widths, rung, state, repeat)
            for rival in rivals:
                assert rival.maps == maps
                if rival.map > metrics["map"] and rival.costs["gflops"] <= metrics["gflops"]:
                    return {**metrics, "raced_images": 64}, state
            return {**metrics, "maps": maps}, state

    settings = {"trials": 12, "racing": True, "rungs": 1, "sampler": "random"}
    expected, ledger = (make_ledger(name=name, **settings) for name in ("by-hand", "by-engine"))
    by_hand(expected, Racing())
    run(ledger, Racing, lambda number: None)
    assert results(ledger) == results(expected)
    raced = [record.raced for record in ledger.finished() if record.raced is not None]
    assert set(raced) == {64}
    on_front = {record.number for record in ledger.front()}
    assert on_front == {r.number for r in ledger.front() if r.raced is None} != set()
    complete = {record.number for record in ledger.finished() if record.state == "complete"}
    assert len(complete) + len(raced) == 12


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


def test_a_search_is_interrupted_resumed_done_and_extended(run, make_ledger, evaluator):
    def disk_full(number):
        if number == 2:
            raise RunError("the disk is full")

    ledger = make_ledger(trials=6)
    with pytest.raises(RunError, match="disk is full"):
        run(ledger, evaluator, disk_full)
    kept = results(ledger)
    assert len(kept) == 3

    # The same search again: nothing is lost, and nothing is run twice.
    resumed, numbers = make_ledger(trials=6), []
    run(resumed, evaluator, numbers.append)
    assert results(resumed)[:3] == kept
    assert len(numbers) == 3
    done = results(resumed)
    assert len(done) == 6

    # It is done, and runs nothing more.
    run(make_ledger(trials=6), evaluator, numbers.append)
    assert len(numbers) == 3

    # Two more trials are requested.
    longer = make_ledger(trials=8)
    run(longer, evaluator, numbers.append)
    assert results(longer)[:6] == done
    assert [record.number for record in longer.finished()][6:] == numbers[3:]
    widths = [tuple(record.widths.values()) for record in longer.finished()]
    assert len(set(widths)) == len(widths) == 8


def counting():
    calls = []

    def function(item):
        calls.append(item)
        if item == 13:
            raise TrainingError("13 can't be done")
        return item * item, len(calls)

    return function


def test_work_that_is_no_trial_is_done_by_one_function_and_refused_in_its_own_words(each):
    results = dict(each(counting, [2, 3, 5]))
    assert {item: square for item, (square, _) in results.items()} == {2: 4, 3: 9, 5: 25}
    assert sorted(count for _, count in results.values()) == [1, 2, 3]
    with pytest.raises(TrainingError, match=r"^13 can't be done$"):
        list(each(counting, [2, 13]))
