import dataclasses

from autoprune.config import Config, make_config
from autoprune.study.trials import Candidate, LedgerSettings


def test_what_a_user_can_set_has_its_default_in_the_settings_alone():
    fields = dataclasses.fields(LedgerSettings)
    assert {field.name for field in fields} - set(Config.model_fields) == {"parallel"}
    defaults = {f.name for f in fields if (f.default, f.default_factory) != (dataclasses.MISSING,) * 2}
    assert defaults == set()


def test_the_settings_of_a_run_are_its_configs():
    defaults = LedgerSettings.from_config(make_config())
    assert defaults.rungs == len(Config.model_fields["rungs"].default)
    for name in ("trials", "objectives", "rung_keep", "sampler", "seed", "confirm", "racing"):
        assert getattr(defaults, name) == Config.model_fields[name].default
    changed = {
        "trials": 7, "objectives": ("map", "latency_ms"), "rung_keep": 0.25, "sampler": "gp", "seed": 3,
        "confirm": 1, "racing": True,
    }  # fmt: skip
    settings = LedgerSettings.from_config(make_config(**changed, rungs=(0, 10, 20)))
    assert settings == LedgerSettings(**changed, rungs=3, parallel=False)


def test_trials_run_in_parallel_on_several_workers():
    assert not LedgerSettings.from_config(make_config(), workers=1).parallel
    assert LedgerSettings.from_config(make_config(), workers=2).parallel


def test_a_candidate_is_first_evaluated_with_the_runs_own_seed():
    assert Candidate(0, "uniform", {"a": 3}).repeat == 0
