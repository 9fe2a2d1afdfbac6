"""A latency model is measured once per architecture and setup; budgets and predictions follow from it."""

import json

import numpy as np
import pytest
import torch

from autoprune.cost.budget import figures
from autoprune.errors import BudgetError, RunError
from autoprune.latency import fit as module
from autoprune.latency.fit import NETWORKS, fit_model, on_budget, prediction_error
from autoprune.latency.machine import LatencySetup
from autoprune.latency.model import GRID
from autoprune.latency.timing import Latency

SETUP = LatencySetup("torch", torch.device("cpu"), 1, (64, 64))


class Machine:
    """Operators take what they multiply, and networks 1.5 times their sum and 2 ms."""

    def __init__(self, network, fake_seconds):
        self.network, self.seconds, self.disturbance = network, fake_seconds, 0.0
        self.tables = self.networks = 0

    def measure_tables(self, calls, setup, folder):
        self.tables += 1
        worth = np.array([self.seconds(call.operator) * 1e3 for call in calls]) * (1 + 1e-7 / 3)
        return worth[:, None, None] * np.outer(GRID, GRID)

    def measure_networks(self, models, setup):
        latencies = []
        for number, model in enumerate(models):
            self.networks += 1
            calls = module.find_calls(model, module.detector_inputs(setup.input_size)[0])
            ms = 2 + 1.5 * sum(self.seconds(call.operator) * 1e3 for call in calls)
            ms *= 1 + self.disturbance * (number % 2)
            latencies.append(Latency(ms, ms, ms, 1))
        return latencies


@pytest.fixture
def machine(network, fake_seconds, monkeypatch, tmp_path):
    made = Machine(network, fake_seconds)
    monkeypatch.setattr(module, "measure_tables", made.measure_tables)
    monkeypatch.setattr(module, "measure_networks", made.measure_networks)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    return made


# Files and caches do not depend on the detector, and to prune this one takes a third of the time.
of_one_detector = pytest.mark.parametrize("network", ["retinanet_resnet18_fpn"], indirect=True)


def fit(network, file, begun=False, setup=SETUP):
    return fit_model(network.model, network.graph, network.space, setup, file, begun)


def test_the_model_predicts_the_networks_it_was_fitted_to(network, machine, tmp_path):
    model = fit(network, tmp_path / "run.json")
    assert (machine.tables, machine.networks) == (1, NETWORKS)
    assert model.label == SETUP.label
    assert float(model(network.space.dense)) == pytest.approx(model.dense_ms, rel=0.02)
    assert model.mean_error < 0.02


@of_one_detector
def test_it_is_measured_once_for_a_run_and_for_all_that_share_the_cache(network, machine, tmp_path):
    first = fit(network, tmp_path / "first.json")
    again, other = fit(network, tmp_path / "first.json"), fit(network, tmp_path / "other.json")
    assert (machine.tables, machine.networks) == (1, NETWORKS)
    assert first.key == again.key == other.key
    widths = np.stack([network.space.lowest, network.space.dense])
    assert first(widths).tolist() == again(widths).tolist() == other(widths).tolist()
    assert json.loads((tmp_path / "first.json").read_text()) == json.loads(
        (tmp_path / "other.json").read_text()
    )


@of_one_detector
def test_another_setup_is_measured_again_and_refused_for_a_run_that_has_begun(network, machine, tmp_path):
    fit(network, tmp_path / "run.json")
    elsewhere = LatencySetup("torch", torch.device("cpu"), 3, (64, 64))
    with pytest.raises(RunError, match=r"1 thread, .* and this is .*3 threads, .*choose another --out"):
        fit(network, tmp_path / "run.json", begun=True, setup=elsewhere)
    assert fit(network, tmp_path / "run.json", setup=elsewhere).label == elsewhere.label
    assert machine.tables == 2


@of_one_detector
def test_what_a_busy_machine_measured_is_kept_for_this_run_alone(network, machine, tmp_path):
    machine.disturbance = 1.0
    assert fit(network, tmp_path / "run.json").mean_error > 0.15
    assert (tmp_path / "run.json").is_file()
    assert not (tmp_path / "cache").exists()


def test_candidates_are_projected_onto_the_budget_less_the_margin(network, latency):
    space, budget = on_budget(latency, network.space, "60%")
    margin = np.quantile(latency.errors, 0.8)
    assert (budget.metric, budget.limit) == ("latency_ms", pytest.approx(60 / (1 + margin)))
    for fractions in np.random.default_rng(0).random((5, len(space.variables))):
        widths = space.project_to_budget(fractions, [budget])
        assert 0.95 * budget.limit < float(latency(widths)) <= budget.limit
    assert float(network.space.budget_usage(space.dense, [budget])) == 0  # without a model there is no bound


def test_a_budget_on_latency_out_of_reach_says_the_least(network, latency):
    least = float(latency(network.space.lowest))
    with pytest.raises(
        BudgetError, match=rf"budget_latency_ms: .* smallest in this search space is {figures(least)}"
    ):
        on_budget(latency, network.space, f"{least / 2}")
    with pytest.raises(BudgetError, match="prunes nothing"):
        on_budget(latency, network.space, "101")


def test_the_prediction_error_is_relative_to_what_was_measured(network, latency):
    widths = [network.space.as_dict(each) for each in (network.space.dense, network.space.lowest)]
    predicted = [float(latency(network.space.as_array(each))) for each in widths]
    line = prediction_error(latency, [(widths[0], predicted[0] / 1.1), (widths[1], predicted[1] / 0.7)])
    assert line.startswith(
        "latency: predictions were off by 20.0% on average, 30.0% at most, of what 2 trials"
    )
    assert prediction_error(latency, []) is None
