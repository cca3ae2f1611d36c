import numpy as np
import pytest
from scipy.stats import bootstrap

from vimlrp.errors import InputError
from vimlrp.evaluation import bootstrap as module
from vimlrp.evaluation.bootstrap import estimates
from vimlrp.evaluation.measures import Statistic

RNG = np.random.default_rng(3)
COLUMNS = {"a": RNG.normal(2, 1, 60), "b": RNG.uniform(1, 3, 60)}
MEAN = Statistic.mean("a", "a", "higher")
RATIO = Statistic("ratio", (("a", "b"), ("b", "a")), "higher")


def test_a_mean_and_its_interval_are_scipys():
    (found,) = estimates([MEAN], COLUMNS, resamples=20000)
    expected = bootstrap(
        (COLUMNS["a"],), np.mean, method="percentile", n_resamples=20000, rng=1
    ).confidence_interval
    assert found.value == pytest.approx(COLUMNS["a"].mean())
    assert found.count == 60
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_ratios_are_of_sums_and_not_of_samples():
    (found,) = estimates([RATIO], COLUMNS, resamples=20000)

    def ratio(a, b, axis=-1):
        a, b = a.sum(axis), b.sum(axis)
        return (a / b + b / a) / 2

    expected = bootstrap(
        (COLUMNS["a"], COLUMNS["b"]), ratio, paired=True, method="percentile",
        n_resamples=20000, rng=1,
    ).confidence_interval  # fmt: skip
    assert found.value == pytest.approx(ratio(COLUMNS["a"], COLUMNS["b"]))
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_samples_without_a_value_do_not_count():
    gaps = {"a": np.where(np.arange(60) % 3 == 0, np.nan, COLUMNS["a"])}
    (found,) = estimates([MEAN], gaps)
    assert found.value == pytest.approx(np.nanmean(gaps["a"]))
    assert found.count == 40
    assert found.low < found.value < found.high


def test_nothing_to_estimate_is_no_number():
    for columns in ({}, {"a": np.array([])}, {"a": np.full(4, np.nan)}):
        (found,) = estimates([MEAN], columns)
        assert np.isnan([found.value, found.low, found.high]).all()
        assert found.count == 0


def test_the_interval_is_the_same_every_time_and_shrinks_with_its_confidence():
    assert estimates([MEAN], COLUMNS) == estimates([MEAN], COLUMNS)
    (wide,), (narrow,) = (estimates([MEAN], COLUMNS, confidence=c) for c in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_no_interval_is_refused(options):
    with pytest.raises(InputError, match="between 0 and 1"):
        estimates([MEAN], COLUMNS, **options)


def test_many_samples_are_drawn_in_pieces_with_the_same_result(monkeypatch):
    gaps = {**COLUMNS, "a": np.where(np.arange(60) % 5 == 0, np.nan, COLUMNS["a"])}
    whole = estimates([MEAN, RATIO], gaps, resamples=101)
    drawn = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 101)
    there = np.isfinite(gaps["a"])
    means = (drawn * np.nan_to_num(gaps["a"])).sum(1) / (drawn * there).sum(1)
    assert [whole[0].low, whole[0].high] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    assert whole[1].count == there.sum()
    for most in (1, 60 * 7, 60 * 101):
        monkeypatch.setattr(module, "_MOST", most)
        pieces = estimates([MEAN, RATIO], gaps, resamples=101)
        for one, other in zip(whole, pieces, strict=True):
            assert vars(other) == pytest.approx(vars(one), rel=1e-13)
