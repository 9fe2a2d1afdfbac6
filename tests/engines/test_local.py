import pytest

from autoprune.engines import local
from autoprune.errors import RunError


def test_an_error_that_is_not_the_trials_own_ends_the_search_and_loses_nothing(make_ledger, evaluator):
    class DiskFull(evaluator):
        def evaluate(self, widths, rung, state, repeat=0, rivals=()):
            if self.evaluations == 3:
                raise RunError("the disk is full")
            return super().evaluate(widths, rung, state, repeat)

    with pytest.raises(RunError, match="disk is full"):
        local.run(make_ledger(), DiskFull(), lambda number: None)
    resumed = make_ledger()
    local.run(resumed, evaluator(), lambda number: None)
    assert len(resumed.finished()) == 6
    assert not any(record.state == "failed" for record in resumed.finished())
