import pytest

from autoprune.config import Config, load_config, make_config
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
        ({"rungs": [20, 0]}, "rungs must rise"),
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
