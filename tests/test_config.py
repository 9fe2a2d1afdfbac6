import dataclasses
from dataclasses import MISSING

import pytest

from autoprune import config as module
from autoprune.config import MAY_CHANGE, SETTINGS, Config, load_config, make_config
from autoprune.errors import ConfigError


def test_defaults_mean_retinanet_on_coco():
    config = make_config(budget_gflops="50")
    assert (config.model, str(config.data), config.budget_gflops) == (
        "retinanet_resnet50_fpn",
        "data/coco",
        ("50",),
    )


@pytest.mark.parametrize("given", ["50%,33%", ["50%", "33%"], ("50%", "33%")])
def test_budgets_come_as_one_text_or_a_list(given):
    assert make_config(budget_gflops=given).budget_gflops == ("50%", "33%")


def test_a_bare_number_is_a_budget(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("budget_gflops: 50\nbudget_mparams: 12.5\nrungs: [0, 20]\n")
    config = load_config(path)
    assert (config.budget_gflops, config.budget_mparams, config.rungs) == (("50",), "12.5", (0, 20))


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("trials: 5\nseed: 3\n")
    config = load_config(path, trials=9, model=None)
    assert (config.trials, config.seed, config.model) == (9, 3, Config.model_fields["model"].default)


def test_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("budget_gflop: 50\n")
    with pytest.raises(
        ConfigError, match=r"unknown key `budget_gflop` in .*c\.yaml; valid keys: budget_gflops"
    ):
        load_config(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trials": 0}, "`trials`"),
        ({"rungs": [20, 0]}, "rungs must increase"),
        ({"objectives": ["gflops"]}, "objectives must hold map"),
        ({"sampler": "best"}, "`sampler`"),
        ({"input_size": [800]}, "`input_size"),
        *(
            ({"budget_latency_ms": text}, "`budget_latency_ms`: must be milliseconds such as 12.5")
            for text in ("fast", "0", "-3", "100%", "60%%", "%", "")
        ),
    ],
)
def test_bad_values_are_one_line_naming_the_field(values, said):
    with pytest.raises(ConfigError) as caught:
        make_config(**values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["12.5", "60%", " 60 % ", 12, "1e3", "150"])
def test_a_budget_on_latency_is_a_time_or_a_share(given):
    assert make_config(budget_latency_ms=given).budget_latency_ms == str(given)


def test_a_list_is_not_a_config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="list"):
        load_config(path)


# one source for each setting


def test_each_setting_has_its_panel_and_the_schema_shows_it():
    properties = Config.model_json_schema()["properties"]
    assert properties.keys() == SETTINGS.keys() == Config.model_fields.keys()
    for name, setting in SETTINGS.items():
        assert properties[name]["panel"] == setting.panel
        assert properties[name]["may_change_on_resume"] is (name in MAY_CHANGE)
        assert properties[name]["description"]


def test_a_resumed_run_may_change_where_and_how_long_it_runs_and_nothing_else():
    where = {"out", "device", "threads", "engine", "address", "workers", "cpus_per_trial", "gpus_per_trial"}
    how_long = {"trials", "steps", "check_proxies", "confirm"}
    assert where | how_long | {"image_cache_gib", "strict", "track"} == MAY_CHANGE


def defaults_elsewhere():
    """(place, field, default) of each setting that has a default outside `Config` too."""
    from autoprune.engines.dispatch import Cluster
    from autoprune.study.trials import LedgerSettings
    from autoprune.training import TrainSettings

    for cls in (Cluster, LedgerSettings, TrainSettings):
        for field in dataclasses.fields(cls):
            # `LedgerSettings.rungs` is their number, `Config.rungs` the steps of each
            same = field.name in Config.model_fields and (cls, field.name) != (LedgerSettings, "rungs")
            if same and field.default is not MISSING:
                yield cls.__name__, field.name, field.default


def test_a_default_that_is_repeated_elsewhere_is_the_same_there():
    repeated = list(defaults_elsewhere())
    assert repeated == [(place, name, Config.model_fields[name].default) for place, name, _ in repeated], (
        "defaults differ from those of Config"
    )


# renamed keys


@pytest.fixture
def renamed(monkeypatch):
    """As if the previous version had called `trials` and `seed` otherwise."""
    monkeypatch.setattr(module, "RENAMED", {"attempts": "trials", "chance": "seed"})


def test_the_old_spelling_of_a_key_is_read_with_a_warning_of_one_line(renamed, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("attempts: 5\nchance: 3\n")
    with pytest.warns(UserWarning, match="old spelling") as caught:
        config = load_config(path, seed=4)
    assert (config.trials, config.seed) == (5, 4)
    assert [str(warning.message) for warning in caught] == [
        f"{path}: `{old}` is now `{new}`; the old spelling goes with the next version"
        for old, new in (("attempts", "trials"), ("chance", "seed"))
    ]
    with pytest.warns(UserWarning, match="`attempts` is now `trials`"):
        assert make_config(attempts=6).trials == 6


def test_both_spellings_of_a_key_are_refused(renamed, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("attempts: 5\ntrials: 6\n")
    with pytest.raises(ConfigError, match="`attempts` is the old spelling of `trials`; give only `trials`"):
        load_config(path)


def test_old_names_lead_to_fields():
    assert set(module.RENAMED.values()) <= Config.model_fields.keys()
    assert not module.RENAMED.keys() & Config.model_fields.keys()
