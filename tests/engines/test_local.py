import pytest

from autoprune.engines import local
from autoprune.errors import RunError


def test_runs_every_trial_once_and_tells_of_each(make_ledger, objective):
    ledger, told = make_ledger(trials=6), []
    work = objective()
    local.run(ledger, work, told.append)
    records = ledger.finished()
    assert told == [record.number for record in records]
    assert len(records) == 6
    assert work.evaluations == sum(len(record.rungs) for record in records)


def test_a_trial_that_cannot_be_trained_fails_and_the_search_goes_on(make_ledger, objective):
    ledger = make_ledger(trials=10)
    local.run(ledger, objective(fails_above=50), lambda number: None)
    failed = [record for record in ledger.finished() if record.state == "failed"]
    assert 0 < len(failed) < 10
    assert {record.reason for record in failed} == {"the loss is not finite at step 3"}
    assert all(record.widths["b"] > 50 for record in failed)


def test_an_error_that_is_not_the_trials_own_ends_the_search_and_loses_nothing(make_ledger, objective):
    class DiskFull(objective):
        def evaluate(self, keep, rung, state):
            if self.evaluations == 3:
                raise RunError("the disk is full")
            return super().evaluate(keep, rung, state)

    with pytest.raises(RunError, match="disk is full"):
        local.run(make_ledger(), DiskFull(), lambda number: None)
    resumed = make_ledger()
    local.run(resumed, objective(), lambda number: None)
    assert len(resumed.finished()) == 6
    assert not any(record.state == "failed" for record in resumed.finished())
