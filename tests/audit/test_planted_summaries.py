"""Tables over records whose answers are counted by hand."""

import copy
import re

import pytest

from vimlrp.audit.planted.running import Settings
from vimlrp.audit.planted.summaries import summary

EFFECT = {"value": 2.0, "low": 1.0, "high": 3.0, "count": 100}


def a_class(label, kind="planted", rank=1, flagged=True, **options):
    known = {
        "label": label,
        "kind": kind,
        "artifact": "patch" if kind == "planted" else None,
        "prevalence": 0.25 if kind == "planted" else 0.0,
        "gated": kind == "planted",
        "ignored": kind != "planted",
        "rank": rank,
        "of": 11,
        "flagged": flagged,
        "scores": [{"channel": "latent", "p": 0.1 * (label + 1), "q": 0.5, "flagged": flagged}],
    }
    return {**known, **options}


def a_finding(label, kind="planted", verdict="causal", clever_hans=True, mean=1.0, **options):
    planted = {
        "artifact": "patch",
        "prevalence": 0.25,
        "effect": EFFECT,
        "carried": EFFECT,
        "retrieval": {
            "auroc": 0.9,
            "average_precision": 0.75,
            "precision_at_10": 1.0,
            "precision_at_25": 0.8,
            "best_f1": 0.7,
            "f1": 0.6,
            "purity": 1.0,
            "recall": 0.2,
            "prevalence": 0.25,
            "carriers": 20,
            "to_view": 40,
        },
        "localisation": {
            "artifact_local": True,
            "found_local": True,
            "enrichment": 12.0,
            "pointing": 0.9,
            "pixel_precision": 0.5,
            "area": 0.02,
            "iou": 0.55,
        },
    }
    known = {
        "label": label,
        "kind": kind,
        "gated": kind == "planted",
        "ignored": kind != "planted",
        "verdict": verdict,
        "clever_hans": clever_hans,
        "effects": [{"kind": "insertion", "mean": mean}, {"kind": "removal", "mean": -mean}],
        **(planted if kind == "planted" else {}),
    }
    return {**known, **options}


@pytest.fixture
def record():
    return {
        "settings": Settings("cnn", 0).plain(),
        "parameters": 370_000,
        "accuracy": {"clean": 0.71, "audited": 0.9},
        "inert": None,
        "classes": [
            a_class(0),
            a_class(1, rank=4, flagged=False),
            a_class(2, kind="clean", rank=1, flagged=True),
            a_class(3, kind="clean", rank=2, flagged=False),
            a_class(4, kind="two poses", flagged=False),
        ],
        "findings": [
            a_finding(0, mean=3.0),
            a_finding(1, verdict="associative", clever_hans=False, mean=-1.0),
            a_finding(2, kind="clean", verdict="causal", clever_hans=False),
            a_finding(4, kind="two poses", verdict="not enough images", clever_hans=False),
        ],
        "seconds": {"train": 10.0, "gather": 5.0},
        "problems": [],
    }


def row(text, name, header=None):
    part = text if header is None else text[text.index(header) :]
    line = next(line for line in part.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_row_has_as_many_cells_as_its_header(record):
    text = summary([record])
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_classifiers(record):
    other = copy.deepcopy(record)
    other["accuracy"]["clean"] = 0.64
    cells = row(summary([record, other]), "cnn")
    assert cells[1:6] == ["0.37 M", "2", "64 to 71 %", "4 of 4", "15"]
    assert cells[6].startswith("10 / 5 /")


def test_flagging(record):
    cells = row(summary([record]), "all", "are they flagged")
    assert cells[1:3] == ["2", "2.5 (11)"]
    assert cells[3].startswith("50 % (")
    assert cells[4].startswith("50 % (")
    assert cells[5].startswith("50 % (")
    assert cells[6] == "0.850"  # (1 + 0.7) / 2


def test_weakly_relied_on_classes_are_told_apart(record):
    record["classes"][1]["gated"] = False
    text = summary([record])
    assert row(text, "all", "are they flagged")[1] == "1"
    assert row(text, "not relied on enough (any prevalence)")[1] == "1"


def test_controls(record):
    text = summary([record])
    clean = row(text, "clean", "false alarms")
    assert clean[1] == "2"
    assert clean[2].startswith("50 % (1 to 99)")  # Clopper-Pearson of 1 in 2
    assert clean[3] == "1"
    assert clean[4].startswith("100 %")
    assert clean[5].startswith("0 %")
    poses = row(text, "two legitimate poses")
    assert poses[4].startswith("0 %")


def test_inert_runs_are_told_apart(record):
    inert = copy.deepcopy(record)
    inert["inert"] = "patch"
    text = summary([record, inert])
    assert row(text, "clean", "false alarms")[1] == "2"
    assert row(text, "clean, an inert artifact in all classes")[1] == "2"


def test_rates_of_discovery(record):
    text = summary([record])
    assert row(text, "flagged classes that hold nothing (FDR)")[1].startswith("50 %")
    assert row(text, "false alarms in 1,000 clean classes")[1].startswith("500 (13 to 987; 2")


def test_retrieval_and_localisation(record):
    text = summary([record])
    cells = row(text, "0.25", "are they found")
    assert cells[1:4] == ["2", "0.9", "0.75"]
    assert cells[-2:] == ["3.0x", "40"]
    place = row(text, "patch", "Where the artifact lies")
    assert place[1:7] == ["2", "0.02", "12", "0.9", "0.5", "0.55"]
    assert place[7].startswith("100 %")


def test_causality(record):
    text = summary([record])
    assert row(text, "effect claimed where there is one")[1].startswith("50 %")
    quiet = row(text, "no effect claimed in controls and where it is ignored")
    assert quiet[1].startswith("50 %")


def test_effects_are_compared_by_rank_and_sign(record):
    exact = [3.0, 1.0, 2.0, -1.0]
    record["findings"] = [
        a_finding(
            i, mean=mean, effect={**EFFECT, "value": value}, carried={**EFFECT, "value": value}
        )
        for i, (mean, value) in enumerate(zip([2.5, 0.5, 1.5, 0.2], exact, strict=True))
    ]
    text = summary([record])
    for kind in ("insertion", "removal"):
        cell = row(text, f"{kind}: rank correlation with the exact effect; same sign")[1]
        assert cell.startswith("1.00; 75 %")


def test_mitigation(record):
    done = {
        "method": "P-ClArC",
        "clean": 0.7,
        "clean_after": 0.69,
        "attacked": 0.2,
        "attacked_after": 0.6,
        "regained": 0.8,
        "recovery": 0.75,
    }
    assert "### Mitigation" not in summary([record])
    record["findings"][0]["mitigation"] = [done]
    cells = row(summary([record]), "P-ClArC")
    assert cells[1:] == ["all", "1", "0.7", "0.69", "0.2", "0.6", "0.8", "0.75"]


def test_problems_are_listed(record):
    record["problems"] = ["class 3: it went wrong"]
    assert "- cnn, class 3: it went wrong" in summary([record])
