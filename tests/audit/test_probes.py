import csv
import io
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_models import LinearModel, PatchReader
from PIL import Image
from scipy import stats
from small_audit import ABOUT, PREPROCESSING, evidence, picture, score

from vimlrp.audit.probing import probes as module
from vimlrp.audit.probing.probes import PROBES, Probe, probe, probes_named, write_probe_table
from vimlrp.audit.probing.statistics import false_discovery
from vimlrp.audit.probing.tables import Measure
from vimlrp.audit.records import Screening
from vimlrp.audit.reporting import write_report
from vimlrp.errors import InputError, MissingDependencyError
from vimlrp.evaluation.data import DataSet, Problem, Sample

SAME = Probe("same", "nothing", lambda pixels, rng: pixels)
DARK = Probe("dark", "half as bright", lambda pixels, rng: pixels // 2)
NOISE = Probe("noise", "random", lambda pixels, rng: rng.integers(0, 256, pixels.shape, np.uint8))


def pictures(folder, counts=(12, 12), side=32):
    samples = []
    for label, count in enumerate(counts):
        for _ in range(count):
            i = len(samples)
            path = folder / f"{i}.png"
            folder.mkdir(exist_ok=True)
            Image.fromarray(picture(i, side)).save(path)
            samples.append(Sample(path, f"{i}.png", label))
    return DataSet(tuple(samples))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("probed"), (12, 9, 3))


@pytest.fixture(scope="module")
def model():
    model = LinearModel(classes=3)
    with torch.no_grad():
        model.weight.mul_(0.02)
    return model


def probabilities(model, data, change):
    """In float64, by hand: pixels, normalisation, weights, softmax; (n, C)."""
    weight = model.weight.detach().numpy()
    rows = []
    for sample in data.samples:
        pixels = change(np.asarray(Image.open(sample.path)), None) / 255
        x = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        logits = np.einsum("hwc,kchw->k", x, weight)
        rows.append(np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum())
    return np.array(rows)


def by(table, probe_name, measure):
    return {c.label: c for c in table.changes if (c.probe, c.measure) == (probe_name, measure)}


@pytest.fixture(scope="module")
def table(model, data):
    return probe(model, data, probes=(DARK, *probes_named(["letterbox"])), resamples=500)


@pytest.mark.parametrize("name", ["dark", "letterbox"])
def test_every_figure_agrees_with_a_calculation_by_hand(name, table, model, data):
    change = {p.name: p.change for p in table.probes}[name]
    before, after = (probabilities(model, data, c) for c in (lambda pixels, rng: pixels, change))
    labels = np.array([sample.label for sample in data.samples])
    for label, found in by(table, name, Measure.EVERYWHERE).items():
        assert found.before == pytest.approx(before[:, label].mean(), rel=1e-5)
        assert found.after == pytest.approx(after[:, label].mean(), rel=1e-5)
        expected = stats.ttest_rel(after[:, label], before[:, label]).pvalue
        assert found.p_value == pytest.approx(expected, rel=1e-3)
        assert found.change.count == 24
    for label, found in by(table, name, Measure.PROBABILITY).items():
        own = labels == label
        assert found.change.value == pytest.approx((after - before)[own, label].mean(), abs=1e-6)
        assert found.change.low <= found.change.value <= found.change.high
        assert found.change.count == own.sum()
    for label, found in by(table, name, Measure.ACCURACY).items():
        own = labels == label
        right = [(p[own].argmax(axis=1) == label) for p in (before, after)]
        assert (found.before, found.after) == tuple(r.mean() for r in right)
        lost, won = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
        if own.sum() >= 5:
            assert found.p_value == pytest.approx(mcnemar(int(lost), int(won)))
    overall = {o.probe: o for o in table.overall}[name]
    assert overall.before == (before.argmax(axis=1) == labels).mean()
    assert overall.after == (after.argmax(axis=1) == labels).mean()
    assert overall.change.value == pytest.approx(overall.after - overall.before)


def mcnemar(lost, won):
    """Two-sided, from binomial coefficients."""
    n = lost + won
    tail = sum(math.comb(n, i) for i in range(min(lost, won) + 1)) / 2**n
    return min(1.0, 2 * tail)


def test_a_class_of_too_few_pictures_has_no_p_value_and_is_never_flagged(table):
    for measure in (Measure.ACCURACY, Measure.PROBABILITY):
        few = by(table, "dark", measure)[2]
        assert few.change.count == 3
        assert math.isnan(few.p_value)
        assert math.isnan(few.q_value)
        assert not few.flagged


def test_nothing_changed_is_no_finding(model, data):
    table = probe(model, data, probes=(SAME,))
    assert all(change.change.value == 0 for change in table.changes)
    assert {c.p_value for c in table.changes if c.change.count >= 5} == {1.0}
    assert not any(change.flagged for change in table.changes)


class TopReader(PatchReader):
    """Class 0 if the upper left patch is brighter than the mean of the training set."""

    def __init__(self):
        super().__init__(row=0, column=0)
        self.pretrained_cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0}


def test_a_model_that_reads_a_corner_is_caught_by_the_border_and_the_bars(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(20):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        pixels[:8, :8] = 180 if i % 2 else 20
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        samples.append(Sample(tmp_path / f"{i}.png", f"{i}.png", 1 - i % 2))
    table = probe(TopReader(), DataSet(tuple(samples)), probes=probes_named(["letterbox", "tint"]))
    lost = by(table, "letterbox", Measure.ACCURACY)
    assert (lost[0].before, lost[0].after, lost[0].flagged) == (1.0, 0.0, True)
    assert lost[0].p_value == pytest.approx(2 / 2**10)
    assert (lost[1].after, lost[1].flagged) == (1.0, False)
    gained = table.flagged("letterbox", Measure.EVERYWHERE, gains=True)
    assert [change.label for change in gained] == [1]
    fell = table.flagged("letterbox", Measure.EVERYWHERE, gains=False)
    assert [change.label for change in fell] == [0]
    assert gained[0].change.value == pytest.approx(-fell[0].change.value)
    assert table.overall[0].change.value == -0.5
    assert table.overall[1].change.value == 0


def test_groups_of_pictures_change_no_mean(model, data, monkeypatch):
    single = probe(model, data, probes=(DARK,))
    monkeypatch.setattr(module, "_GROUPS", 7)
    grouped = probe(model, data, probes=(DARK,))
    for one, other in zip(single.changes, grouped.changes, strict=True):
        assert (one.label, one.measure) == (other.label, other.measure)
        assert one.change.value == pytest.approx(other.change.value, abs=1e-12)
        assert one.after == pytest.approx(other.after)
    assert grouped.overall[0].change.value == pytest.approx(single.overall[0].change.value)


def test_batches_change_nothing_not_even_what_is_random(model, data):
    one, other = (
        probe(model, data, probes=(NOISE,), batch_size=size, resamples=50) for size in (1, 24)
    )
    for a, b in zip(one.changes, other.changes, strict=True):
        assert a.after == pytest.approx(b.after, abs=1e-9)
    seeded = probe(model, data, probes=(NOISE,), seed=1, resamples=50)
    assert seeded.changes[0].after != one.changes[0].after or (
        seeded.changes[-1].after != one.changes[-1].after
    )


def test_the_model_is_left_as_it_was(model, data):
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    probe(model, data, probes=(DARK,), resamples=10)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model.eval()


def test_pictures_without_a_label_take_the_predicted_class(model, data):
    bare = DataSet(tuple(replace(sample, label=None) for sample in data.samples))
    table = probe(model, bare, probes=(DARK,))
    assert table.unlabelled == 24
    assert table.overall[0].before == 1.0


def test_unreadable_pictures_are_listed_and_left_out(model, data, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    given = (Problem("list", "class missing from the model", "x"),)
    broken = DataSet((*data.samples[:6], Sample(tmp_path / "bad.png", "bad.png", 0)), given)
    table = probe(model, broken, probes=(DARK,), batch_size=1, resamples=10)
    assert table.images == 6
    assert [problem.sample for problem in table.problems] == ["list", "bad.png"]
    with pytest.raises(InputError, match="none of the 1 pictures can be read"):
        probe(model, DataSet(broken.samples[6:]), probes=(DARK,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": ()}, "the probes are none"),
        ({"probes": (DARK, DARK)}, "the probes are dark, dark; give some, of different names"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rate": 1.0}, "rate 1.0"),
        ({"resamples": 0}, "resamples is 0"),
    ],
)
def test_impossible_options_are_refused(options, message, model, data):
    with pytest.raises(InputError, match=message):
        probe(model, data, **{"probes": (DARK,)} | options)


def test_no_pictures_and_strange_labels_are_refused(model, data):
    with pytest.raises(InputError, match="there are no pictures to probe with"):
        probe(model, DataSet(()))
    strange = DataSet((replace(data.samples[0], label=7),))
    with pytest.raises(InputError, match=r"has the label 7, and the model 3 classes"):
        probe(model, strange, probes=(DARK,))


def test_progress_is_told(model, data):
    told = []
    probe(
        model, data, probes=(DARK,), batch_size=10, resamples=10, progress=lambda *x: told.append(x)
    )
    assert told[:3] == [(0, 24, "probing"), (10, 24, "probing"), (20, 24, "probing")]
    assert told[-1] == (24, 24, "done")


def test_all_probes_run_on_a_model_of_the_package(tmp_path):
    import timm

    model = timm.create_model("vim_nano_patch16_224.imagenette", pretrained=True).eval()
    data = pictures(tmp_path, (1, 1), side=64)
    table = probe(model, data, resamples=10)
    assert len(table.overall) == len(PROBES)
    assert table.name_of(0) == "tench"
    assert len(by(table, "watermark", Measure.EVERYWHERE)) == 10


def test_false_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.9])
    # m = 4: .01 * 4, then the least of .03 * 2 and .04 * 4 / 3 for both.
    expected = [0.04, 0.04 * 4 / 3, np.nan, 0.04 * 4 / 3, 0.9]
    np.testing.assert_allclose(false_discovery(p), expected)
    assert np.isnan(false_discovery(np.full(3, np.nan))).all()


def test_chance_flags_few_classes():
    """Under the null, at most the rate of families has a false discovery, within three sigmas."""
    rng = np.random.default_rng(0)
    hits = [(false_discovery(rng.uniform(size=50)) <= 0.1).any() for _ in range(1000)]
    assert np.mean(hits) < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 1000)


def test_a_missing_scipy_is_named_with_its_extra(model, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vimlrp\[audit\]'"):
        probe(model, data, probes=(DARK,), resamples=10)


def test_the_tables_hold_the_same_figures(table, tmp_path):
    files = {path.name: path.read_text() for path in write_probe_table(tmp_path, table)}
    rows = list(csv.DictReader(io.StringIO(files["probes.csv"])))

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(files["probes.json"], parse_constant=refuse)
    assert len(rows) == len(content["changes"]) == len(table.changes) == 2 * 3 * 3
    for row, entry, change in zip(rows, content["changes"], table.changes, strict=True):
        assert (row["probe"], int(row["class"])) == (change.probe, change.label)
        assert entry["measure"] == row["measure"] == change.measure.value
        assert entry["change"] == change.change.value
        assert float(row["low"]) == pytest.approx(change.change.low, rel=1e-5, abs=1e-9)
        assert row["flagged"] == str(int(change.flagged))
        assert (row["q_value"] == "") == math.isnan(change.q_value) == (entry["q_value"] is None)
    assert [entry["name"] for entry in content["probes"]] == ["dark", "letterbox"]
    overall = table.overall[0]
    cell = f"{100 * overall.change.value:+.1f} [{100 * overall.change.low:+.1f}"
    assert f"| dark | half as bright | {100 * overall.after:.1f} % | {cell}" in files["probes.md"]
    assert "24 pictures, each compared with its changed twin" in files["probes.md"]


def test_the_notes_say_what_was_missing(table, tmp_path):
    lacking = replace(table, unlabelled=3, problems=(Problem("a", "cannot be read", "b"),))
    text = write_probe_table(tmp_path, lacking)[0].read_text()
    assert "3 of the pictures have no label" in text
    assert "1 pictures could not be used" in text


def test_the_report_has_a_section_for_probes(table, tmp_path):
    lacking = replace(table, unlabelled=3, class_names=("<b>one</b>", "two", "three"))
    found = evidence(tmp_path / "pictures")
    files = write_report(
        tmp_path / "report",
        found,
        Screening((score(0, 0.5),), 0.1),
        (),
        about=ABOUT,
        preprocessing=PREPROCESSING,
        probes=lacking,
    )
    text = files[0].read_text()
    assert 'id="probes"' in text
    assert "half as bright" in text
    assert "3 of the pictures have no label" in text
    assert "<b>one</b>" not in text
