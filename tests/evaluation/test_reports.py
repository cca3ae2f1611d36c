import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_models import LinearModel
from PIL import Image

from vimlrp.errors import MissingDependencyError
from vimlrp.evaluation import DataSet, Plan, Problem, Results, Sample, metrics_named, plots, reports
from vimlrp.evaluation.results import Cost, MethodResult

SHARES = np.linspace(0, 1, 21)
REMOVED = np.array([round(196 * share) for share in SHARES]) / 196


def results(count=4, methods=("one", "other"), problems=()):
    samples = tuple(Sample(None, f"{i}.png", i % 2 or None) for i in range(count))
    plan = Plan(
        LinearModel(), "linear", DataSet(samples), dict.fromkeys(methods),
        metrics_named(["flipping:mean", "conservation"], ()),
    )  # fmt: skip
    found = {}
    for i, name in enumerate(methods):
        values = {
            f"flipping:mean/{column}": np.arange(count) + i / 10
            for column in ("delta_logit", "delta_probability", "morf_logit", "lerf_logit")
        }
        values |= {f"conservation/{c}": np.full(count, np.nan) for c in ("residue", "pixels")}
        curves = {
            f"flipping:mean/{order}_{reading}": np.outer(np.arange(count) + 1, power)
            for reading in ("logit", "probability")
            for order, power in (("morf", (1 - SHARES) ** 4), ("lerf", 1 - SHARES**4))
        }
        costs = (Cost("cpu (x86)", 2, count, 0.5, 0.25, np.nan),)
        found[name] = MethodResult(values, curves, {"flipping:mean": REMOVED}, costs)
    classified = {key: np.ones(count) for key in ("predicted", "probability", "target")}
    return Results(plan, classified, found, tuple(problems))


def test_a_table_has_a_row_a_method_with_arrows_intervals_and_gaps():
    text = reports.result_table(results())
    assert "linear, 4 of 4 samples, predicted class" in text
    assert (
        "| flipping:mean | ΔA^F ↑ | SRG ↑ | A MoRF (logit) ↓ | A LeRF (logit) ↑ | samples |" in text
    )
    row = next(line for line in text.splitlines() if line.startswith("| other | 1.6 ["))
    assert row.endswith("| 4 |")
    assert "| one | - | - | 0 |" in text


def test_costs_stand_apart_by_device():
    found = results()
    text = reports.cost_table(found)
    assert "| one | cpu (x86) | 2 | 500 | 250 | - |" in text
    assert "medians over batches" in text
    assert "500" not in reports.result_table(found)
    other = Cost("cuda (H100)", 1, 2, 0.001, 0.002, 3 * 2.0**20)
    one = found.methods["one"]
    both = {"one": replace(one, costs=(*one.costs, other))}
    text = reports.cost_table(replace(found, methods=both))
    assert "| one | cpu (x86) | 2 | 500 | 250 | - |\n| one | cuda (H100) | 1 | 1 | 2 | 3 |" in text


def test_problems_are_counted_by_kind_and_method():
    problems = [Problem("a", "empty mask", "")] * 2 + [Problem("a", "constant map", "", "one")]
    text = reports.problem_summary(results(problems=problems))
    assert "| empty mask | the sample | 2 |" in text
    assert "| constant map | one | 1 |" in text
    assert reports.problem_summary(results()) == "No sample had a problem.\n"


def test_files_hold_every_sample_and_the_mean_curves(tmp_path):
    problem = Problem("1.png", "picture cannot be read", 'so, "no"')
    written = reports.write(results(problems=[problem]), tmp_path, command="vimlrp evaluate x")
    assert {path.name for path in written} == {
        "samples.csv", "curves.csv", "problems.csv", "table.md", "cost.md", "manifest.json",
    }  # fmt: skip
    rows = read(tmp_path / "samples.csv")
    assert [(r["sample"], r["label"], r["method"]) for r in rows[:4]] == [
        ("0.png", "", "one"), ("0.png", "", "other"),
        ("1.png", "1", "one"), ("1.png", "1", "other"),
    ]  # fmt: skip
    assert float(rows[3]["flipping:mean/delta_logit"]) == 1.1
    assert rows[3]["conservation/residue"] == ""
    curves = [r for r in read(tmp_path / "curves.csv") if r["curve"] == "flipping:mean/morf_logit"]
    assert len(curves) == 2 * 21
    assert float(curves[0]["mean"]) == 2.5
    assert curves[0]["axis"] == "share of patches removed"
    at = [float(row["at"]) for row in curves[:21]]
    assert np.allclose(at, REMOVED, rtol=0, atol=1e-6)
    assert at[1] == 0.0510204  # 10 patches of 196, and not 5 %
    assert read(tmp_path / "problems.csv")[0]["detail"] == problem.detail


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_curves_are_drawn_a_picture_a_reading(tmp_path):
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("matplotlib")
    drawn = plots.draw_curves(results(), tmp_path / "curves")
    assert [path.name for path in drawn] == [
        "flipping_mean_logit.png", "flipping_mean_probability.png",
    ]  # fmt: skip
    picture = cv2.imread(str(drawn[0]))
    assert picture.shape[0] > 300
    colours = {tuple(c) for c in picture.reshape(-1, 3)[::7]}
    assert (180, 119, 31) in colours  # matplotlib's first blue, in OpenCV's order
    assert (14, 127, 255) in colours  # and its orange


def test_curves_without_matplotlib_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vimlrp\[plot\]'"):
        plots.draw_curves(results(), tmp_path)


def test_values_that_are_not_finite_are_written_as_what_they_are(tmp_path):
    found = results()
    values = found.methods["one"].values["flipping:mean/delta_logit"]
    values[:] = [np.inf, -np.inf, np.nan, 1e300]
    reports.write(found, tmp_path)
    rows = [row for row in read(tmp_path / "samples.csv") if row["method"] == "one"]
    written = [row["flipping:mean/delta_logit"] for row in rows]
    assert written == ["inf", "-inf", "", "1e+300"]


def test_areas_say_which_reading_they_are_of():
    titles = [
        statistic.name
        for metric in metrics_named(["flipping", "insertion"], ("mean",))
        for statistic in metric.statistics
        if " A " in statistic.name
    ]
    assert titles == [
        "flipping:mean A MoRF (logit)", "flipping:mean A LeRF (logit)",
        "insertion:mean A MoRF (probability)",
    ]  # fmt: skip


def write(found, folder, **options):
    return [path.relative_to(folder).as_posix() for path in reports.write(found, folder, **options)]


def test_the_manifest_is_last_and_names_pictures_too(tmp_path):
    pytest.importorskip("matplotlib")
    files = write(results(), tmp_path, draw=True)
    assert files[-1] == "manifest.json"
    pictures = {"curves/flipping_mean_logit.png", "curves/flipping_mean_probability.png"}
    assert pictures < set(files)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["files_sha256"]) == set(files) - {"manifest.json"}


def test_a_report_that_breaks_off_leaves_no_manifest(tmp_path, monkeypatch):
    write(results(), tmp_path)

    def full(*_):
        raise OSError(28, "no space left")

    monkeypatch.setattr(reports, "draw_curves", full)
    with pytest.raises(OSError, match="no space"):
        write(results(), tmp_path, draw=True)
    assert not (tmp_path / "manifest.json").exists()
    assert (tmp_path / "table.md").exists()


def test_pictures_of_an_earlier_run_go_and_those_of_the_user_stay(tmp_path):
    pytest.importorskip("matplotlib")
    write(results(), tmp_path, draw=True)
    folder = tmp_path / "curves"
    ours = (folder / "flipping_mean_logit.png").read_bytes()
    (folder / "flipping_zero_token_logit.png").write_bytes(ours)  # as a run of others left it
    Image.new("RGB", (4, 4)).save(folder / "mine.png")
    (folder / "broken.png").write_bytes(ours[:20])
    (folder / "notes.txt").write_text("dear")
    write(results(), tmp_path, draw=True)
    assert {path.name for path in folder.iterdir()} == {
        "flipping_mean_logit.png", "flipping_mean_probability.png", "mine.png", "broken.png",
        "notes.txt",
    }  # fmt: skip
    write(results(), tmp_path)
    assert {path.name for path in folder.iterdir()} == {"mine.png", "broken.png", "notes.txt"}


def test_without_pictures_there_is_no_folder_for_them(tmp_path):
    pytest.importorskip("matplotlib")
    write(results(), tmp_path, draw=True)
    write(results(), tmp_path)
    assert not (tmp_path / "curves").exists()
