import csv
import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_models import (
    METHODS,
    LinearModel,
    constant_map,
    exact,
    finish,
    photo_folder,
    plan,
    random_map,
)
from helpers import small_vim
from PIL import Image

from vimlrp.baselines import METHODS as METHODS_BY_NAME
from vimlrp.baselines.contract import Method as Registered
from vimlrp.errors import InputError, VimLRPError
from vimlrp.evaluation import (
    CompositeMethod,
    DataSet,
    Store,
    collect,
    read_data,
    reports,
    run,
    running,
)
from vimlrp.evaluation.data import Problem


@pytest.fixture
def data(tmp_path):
    photo_folder(tmp_path / "data", 3, ("0", "2"))
    return read_data(tmp_path / "data", None, 3)


def test_the_results_are_those_of_the_metrics_alone(data, tmp_path):
    results = finish(plan(data), tmp_path / "out")
    alone = finish(plan(data, batch_size=6), tmp_path / "other")
    for name in METHODS:
        for key, values in results.methods[name].values.items():
            assert values.shape == (6,)
            assert np.isfinite(values).all()
            assert np.allclose(values, alone.methods[name].values[key])
    gain = "flipping:mean/delta_logit"
    exact_gain, random_gain = (results.methods[name].values[gain] for name in METHODS)
    assert (exact_gain > random_gain).all()
    assert not results.problems
    assert results.lost() == 0


class Interrupted(BaseException):
    pass


def interrupt_after(count):
    """A progress that breaks off, as a key does."""
    calls = []

    def progress(done, total, text):
        calls.append(text)
        if len(calls) > count:
            raise Interrupted

    return progress


DETERMINISTIC = ("samples.csv", "curves.csv", "problems.csv", "table.md")


@pytest.mark.parametrize("after", [0, 1, 2, 4, 7])
def test_an_interrupted_evaluation_goes_on_to_the_same_tables(data, tmp_path, after):
    finish(plan(data), tmp_path / "whole")
    with pytest.raises(Interrupted):
        finish(plan(data), tmp_path / "parts", progress=interrupt_after(after))
    explained = []

    @functools.wraps(exact)  # or it would be another method
    def counting(model, x, target):
        explained.append(len(x))
        return exact(model, x, target)

    done = len(list((tmp_path / "parts").glob("parts/*-exact-*.npz")))
    finish(plan(data, methods={**METHODS, "exact": counting}), tmp_path / "parts")
    assert len(explained) == 3 - done
    for name in DETERMINISTIC:
        texts = [(tmp_path / run / name).read_bytes() for run in ("whole", "parts")]
        assert texts[0] == texts[1]


def test_a_finished_evaluation_runs_nothing_again(data, tmp_path):
    finish(plan(data), tmp_path / "out")

    @functools.wraps(exact)
    def never(model, x, target):
        raise AssertionError

    told = []
    finish(plan(data, methods={"exact": never}), tmp_path / "out",
           progress=lambda *state: told.append(state))  # fmt: skip
    assert told == [(6, 6, "done")]


def test_methods_can_be_added_later(data, tmp_path):
    finish(plan(data, methods={"exact": exact}), tmp_path / "out")
    results = finish(plan(data), tmp_path / "out")
    assert set(results.methods) == set(METHODS)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"model": LinearModel(seed=5)},
        {"metrics": ("complexity",)},
        {"dtype": torch.float32},
        {"target": "label"},
    ],
)
def test_other_settings_are_not_mixed_in(data, tmp_path, change):
    finish(plan(data), tmp_path / "out")
    with pytest.raises(InputError, match="other settings"):
        finish(plan(data, **change), tmp_path / "out")


def test_every_bad_picture_is_listed_and_the_others_keep_their_values(tmp_path):
    folder = tmp_path / "data"
    good = photo_folder(folder, 3, ("0", "1"))
    (folder / "0" / "1.png").write_bytes(good[0].read_bytes()[:200])
    (folder / "2").mkdir()
    (folder / "2" / "text.jpg").write_text("no picture")
    Image.new("RGB", (1, 5000)).save(folder / "2" / "thin.png")
    photo_folder(folder, 1, ("unheard-of",))
    results = finish(plan(read_data(folder, None, 3)), tmp_path / "out")
    unreadable, missing = "picture cannot be read", "class missing from the model"
    assert [(p.sample, p.kind) for p in results.problems] == [
        ("0/1.png", unreadable), ("2/text.jpg", unreadable), ("unheard-of/0.png", missing),
    ]  # fmt: skip
    values = results.methods["exact"].values["complexity/gini"]
    names = [s.name for s in results.plan.data.samples]
    lost = {name for name, value in zip(names, values, strict=True) if np.isnan(value)}
    assert lost == {"0/1.png", "2/text.jpg"}
    assert results.lost() == 2
    rows = list(csv.DictReader((tmp_path / "out" / "samples.csv").open(encoding="utf-8")))
    assert len(rows) == len(names) * len(METHODS)
    assert rows[2]["sample"] == "0/1.png"
    assert rows[2]["complexity/gini"] == ""
    assert "| picture cannot be read | the sample | 2 |" in (
        tmp_path / "out" / "table.md"
    ).read_text(encoding="utf-8")


def test_a_batch_of_bad_pictures_alone_is_no_end(tmp_path):
    folder = tmp_path / "data"
    photo_folder(folder, 2, ("1",))
    for i in range(2):
        (folder / "0").mkdir(exist_ok=True)
        (folder / "0" / f"{i}.png").write_text("no picture")
    results = finish(plan(read_data(folder, None, 3)), tmp_path / "out")
    assert results.lost() == 2
    assert np.isfinite(results.methods["exact"].values["complexity/gini"]).sum() == 2
    only_bad = DataSet(results.plan.data.samples[:2])
    results = finish(plan(only_bad), tmp_path / "bad")
    assert results.lost() == 2


def test_constant_and_broken_maps_are_listed_with_their_method(data, tmp_path):
    def broken(model, x, target):
        maps = exact(model, x, target)
        maps[0, 0, 0] = torch.nan
        return maps

    methods = {"constant": constant_map, "broken": broken}
    results = finish(plan(data, methods=methods), tmp_path / "out")
    kinds = {(p.method, p.kind) for p in results.problems}
    assert kinds == {("constant", "constant map"), ("broken", "map not finite")}
    assert sum(p.method == "constant" for p in results.problems) == 6
    assert sum(p.method == "broken" for p in results.problems) == 3
    gains = {n: results.methods[n].values["flipping:mean/delta_logit"] for n in methods}
    assert np.isfinite(gains["constant"]).all()
    assert np.isnan(gains["broken"]).tolist() == [True, False] * 3


def test_labels_are_explained_where_asked_for_and_samples_without_are_listed(tmp_path):
    folder = tmp_path / "data"
    photo_folder(folder, 2, ("2", "unheard-of"))
    results = finish(plan(read_data(folder, None, 3), target="label"), tmp_path / "out")
    assert results.classified["target"][:2].tolist() == [2, 2]
    assert np.isnan(results.classified["target"][2:]).all()
    assert Problem("unheard-of/0.png", "no label", "so it has no target") in results.problems


def test_regions_reach_the_metrics_and_their_faults_the_list(tmp_path):
    photo_folder(tmp_path / "p", 3, ("0",), size=(32, 32))
    table = tmp_path / "boxes.csv"
    table.write_text(
        "path,x0,y0,x1,y1\np/0/0.png,0,0,16,32\np/0/1.png,90,90,99,99\np/0/2.png,,,,\n"
    )
    metrics = ("localisation", "pointing")
    results = finish(plan(read_data(table, None, 3), metrics), tmp_path / "out")
    area = results.methods["exact"].values["localisation:pixels/area"]
    assert area[0] == 0.5
    assert np.isnan(area[1:]).all()
    assert [(p.sample, p.kind) for p in results.problems] == [
        ("p/0/1.png", "box outside the picture")
    ]
    assert "| exact |" in reports.result_table(results)


def test_localisation_of_data_without_regions_stops_before_anything_is_lost(data, tmp_path):
    with pytest.raises(InputError, match="boxes or masks"):
        finish(plan(data, ("pointing",)), tmp_path / "out")


def test_the_manifest_names_settings_versions_and_hashes(data, tmp_path):
    finish(plan(data), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["model"] == "linear"
    assert manifest["methods"] == list(METHODS)
    assert set(manifest["files_sha256"]) >= set(DETERMINISTIC)
    assert {"vimlrp", "torch", "timm", "python"} <= set(manifest["versions"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "loudest"}, "predicted"),
        ({"batch_size": 0}, "1 or more"),
        ({"methods": {}}, "no methods"),
        ({"metrics": []}, "no metrics"),
    ],
)
def test_plans_that_cannot_be_are_refused(data, options, message):
    with pytest.raises(InputError, match=message):
        plan(data, **options)


def test_a_composite_changed_under_its_name_is_measured_again(data, tmp_path):
    model = small_vim(dtype=torch.float32)
    found = []
    for rule in ("gamma(0.1)", "gamma(2)", "gamma(0.1)"):
        methods = {"mine": CompositeMethod({"base": "mambalrp", "projection": rule})}
        results = finish(plan(data, ("complexity",), model=model, methods=methods), tmp_path / "o")
        found.append(results.methods["mine"].values["complexity/gini"])
    assert not np.allclose(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert len(list((tmp_path / "o" / "parts").glob("*-mine-*.npz"))) == 6


def refusing(function, places):
    """A registered method whose map of some pictures is not finite; it is given them in order."""
    seen = []

    def maps(model, x, target):
        found = function(model, x, target)
        for row, picture in enumerate(x):
            key = round(float(picture.sum()), 4)
            if key not in seen:
                seen.append(key)
            if seen.index(key) in places:
                found[row, 0, 0] = torch.nan
        return found

    return Registered("refusing", maps, "none", METHODS_BY_NAME["gradient"].models, 1, 1)


def test_a_registered_method_that_refuses_one_picture_keeps_the_others(data, tmp_path):
    methods = {"refusing": refusing(exact, {1, 4}), "exact": exact}
    results = finish(plan(data, methods=methods), tmp_path / "out")
    names = [sample.name for sample in data.samples]
    assert [(p.sample, p.kind, p.method) for p in results.problems] == [
        (names[i], "no map", "refusing") for i in (1, 4)
    ]
    assert all("NaN" in problem.detail for problem in results.problems)
    found, whole = (results.methods[name] for name in methods)
    assert found.costs[0].images == 4
    assert np.array_equal(found.points["flipping:mean"], whole.points["flipping:mean"])
    for kind in ("values", "curves"):
        for key, values in getattr(whole, kind).items():
            expected = values.copy()
            expected[[1, 4]] = np.nan
            assert np.allclose(getattr(found, kind)[key], expected, equal_nan=True)


def test_a_method_that_refuses_every_picture_has_a_row_without_values(data, tmp_path):
    methods = {"refusing": refusing(exact, set(range(6)))}
    results = finish(plan(data, methods=methods), tmp_path / "out")
    assert len(results.problems) == 6
    assert "| refusing | - | - |" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_pictures_repaired_between_two_runs_move_no_rows(tmp_path):
    good = photo_folder(tmp_path / "data", 4, ("0",))
    kept = good[0].read_bytes()
    read = read_data(tmp_path / "data", None, 3)
    whole = finish(plan(read, batch_size=4), tmp_path / "whole")
    plans = plan(read, batch_size=4)
    store = Store(tmp_path / "out", plans.settings())
    run(replace(plans, methods={"exact": exact}), store)
    good[0].write_text("no picture")
    run(replace(plans, methods=METHODS), store)
    good[0].write_bytes(kept)
    results = collect(plans, store)
    expected = whole.methods["random"].values["complexity/gini"].copy()
    expected[0] = np.nan
    found = results.methods["random"].values["complexity/gini"]
    assert np.array_equal(found, expected, equal_nan=True)


def test_a_picture_of_the_same_size_and_other_content_is_other_data(data, tmp_path):
    finish(plan(data), tmp_path / "out")
    file = data.samples[0].path
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"other settings \(data_sha256\)"):
        finish(plan(data), tmp_path / "out")


def test_other_preprocessing_and_another_version_are_other_settings(data, tmp_path, monkeypatch):
    finish(plan(data), tmp_path / "out")
    other = LinearModel()
    other.pretrained_cfg["crop_pct"] = 0.5
    with pytest.raises(InputError, match=r"other settings \(preprocessing\)"):
        finish(plan(data, model=other), tmp_path / "out")
    monkeypatch.setattr(running, "version", lambda _: "0.0.0")
    with pytest.raises(InputError, match=r"other settings \(vimlrp\)"):
        finish(plan(data), tmp_path / "out")


def test_another_function_under_a_name_is_another_method_and_a_lambda_always_is(data):
    def key(method):
        return plan(data, methods={"mine": method}).key_of("mine")

    def nameless():
        return lambda model, x, target: exact(model, x, target)

    assert key(exact) == key(exact)
    assert key(exact) != key(random_map)
    assert key(METHODS_BY_NAME["gradient"]) == key(METHODS_BY_NAME["gradient"])
    assert key(METHODS_BY_NAME["gradient"]) != key(METHODS_BY_NAME["saliency"])
    one = nameless()
    assert key(one) != key(one)
    assert key(functools.partial(exact)) != key(functools.partial(exact))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": {"cam": METHODS_BY_NAME["raw_attention"]}}, "raw_attention takes"),
        ({"methods": {"lrp": CompositeMethod()}}, "LinearModel"),
        ({"metrics": ("pointing",)}, "boxes or masks"),
        ({"metrics": ("flipping:zero_token",)}, "tokens"),
        ({"patch_size": 7}, "do not cover"),
        ({"metrics": ("black:patches",), "patch_size": 33}, "do not fit"),
    ],
)
def test_what_does_not_fit_is_found_beforehand(data, options, message):
    with pytest.raises(VimLRPError, match=message):
        plan(data, **options).check()


def test_black_is_scored_against_the_folders_classes(data, tmp_path):
    results = finish(plan(data, ("black",), methods={"exact": exact}), tmp_path / "out")
    curve = results.methods["exact"].curves["black:pixels/positive_accuracy"]
    labels = [sample.label for sample in data.samples]
    right = results.classified["predicted"] == labels
    assert (curve[:, 0] == right).all()
    assert not right.all()
