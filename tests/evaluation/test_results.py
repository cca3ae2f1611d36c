"""What parts become when they are joined: curves over what was removed, and costs."""

import csv
import platform
from dataclasses import replace

import numpy as np
import pytest
from evaluation_models import exact, finish, photo_folder, plan

from vimlrp.evaluation import Store, collect, read_data, run


@pytest.fixture
def data(tmp_path):
    photo_folder(tmp_path / "data", 3, ("0", "2"))
    return read_data(tmp_path / "data", None, 3)


def test_points_lie_where_patches_are_whole(data, tmp_path):
    metrics = ("flipping:mean", "insertion:mean", "black", "randomisation")
    results = finish(plan(data, metrics, methods={"exact": exact}), tmp_path / "out")
    removed = np.array([round(16 * step / 20) / 16 for step in range(21)])
    points = results.methods["exact"].points
    assert np.allclose(points["flipping:mean"], removed, atol=1e-7)
    assert np.allclose(points["insertion:mean"], 1 - removed[::-1], atol=1e-7)
    black = [int(32 * 32 * tenth / 10) / 32**2 for tenth in range(10)]
    assert np.allclose(points["black:pixels"], black, atol=1e-7)
    assert points["randomisation"].tolist() == [1, 1, 1, 1]  # a model of one part
    rows = list(csv.DictReader((tmp_path / "out" / "curves.csv").open(encoding="utf-8")))
    found = [float(r["at"]) for r in rows if r["curve"] == "flipping:mean/morf_logit"]
    assert np.allclose(found, removed, atol=1e-5)
    values, curves = results.methods["exact"].values, results.methods["exact"].curves
    for name in ("flipping:mean/morf_logit", "flipping:mean/lerf_probability"):
        areas = np.trapezoid(curves[name], removed, axis=1)
        assert np.allclose(areas, values[name], rtol=1e-5)
    accuracy = curves["black:pixels/negative_accuracy"]
    areas = 100 * np.trapezoid(accuracy, black, axis=1)
    assert np.allclose(areas, values["black:pixels/negative"], rtol=1e-5)


def test_costs_are_medians_over_batches_a_device(data, tmp_path, monkeypatch):
    plans = plan(data, ("complexity",), methods={"exact": exact})
    store = Store(tmp_path / "out", plans.settings())
    run(plans, store)
    key = plans.key_of("exact")
    seconds = {0: ("cpu (a)", 9.0), 1: ("cpu (a)", 1.0), 2: ("cuda (b)", 0.2)}
    for i, (device, time) in seconds.items():
        facts = {"images": 2.0, "seconds": time, "metric_seconds": 2 * time}
        facts |= {"bytes": 64.0} if "cuda" in device else {}
        store[i, key] = replace(store[i, key], facts=facts, device=device)
    cpu, cuda = collect(plans, store).methods["exact"].costs
    assert (cpu.device, cpu.batches, cpu.images) == ("cpu (a)", 2, 4)
    assert (cpu.seconds, cpu.metric_seconds) == (2.5, 5.0)
    assert np.isnan(cpu.peak_bytes)
    assert (cuda.seconds, cuda.peak_bytes) == (0.1, 64.0)


def test_a_part_says_what_it_ran_on(data, tmp_path):
    costs = finish(plan(data), tmp_path / "out").methods["exact"].costs
    assert [cost.device for cost in costs] == [f"cpu ({platform.machine()})"]
    assert (costs[0].batches, costs[0].images) == (3, 6)
    assert costs[0].seconds > 0
