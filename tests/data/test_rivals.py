import numpy as np
import pytest

from autoprune.data.rivals import RESAMPLES, Rival, compare, decode_maps, encode_maps, rival_of


def test_maps_survive_as_text_to_a_thousandth_of_a_point():
    maps = np.random.default_rng(0).random((8, 1 + RESAMPLES))
    maps[2, 5] = np.nan
    text = encode_maps(maps)
    assert len(text) < 2500
    np.testing.assert_allclose(decode_maps(text), maps, atol=1e-5)


def test_the_rival_is_the_best_that_costs_no_more_in_any_objective():
    cheap, dear = Rival(1, 0.5, {"gflops": 1.0}, ""), Rival(2, 0.6, {"gflops": 2.0}, "")
    assert rival_of({"gflops": 3.0}, [cheap, dear]) is dear
    assert rival_of({"gflops": 1.5}, [cheap, dear]) is cheap
    assert rival_of({"gflops": 0.9995}, [cheap, dear]) is cheap  # a twentieth of a percent is no merit
    assert rival_of({"gflops": 0.9}, [cheap, dear]) is None
    fast = Rival(3, 0.9, {"gflops": 1.0, "latency_ms": 5.0}, "")
    assert rival_of({"gflops": 1.0, "latency_ms": 4.0}, [fast]) is None


def test_the_error_is_that_of_the_differences():
    random = np.random.default_rng(0)
    first, second = random.random(1 + RESAMPLES), random.random(1 + RESAMPLES)
    difference, error = compare(first, second)
    assert difference == pytest.approx(first[0] - second[0])
    assert error == pytest.approx(np.std((first - second)[1:], ddof=1))
    assert np.isnan(compare(np.full(1 + RESAMPLES, np.nan), second)[1])
