import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from small_audit import ABOUT, PREPROCESSING, candidate, finding, whole

from vimlrp.audit.records import Channel, Effect
from vimlrp.audit.reporting import identities, read_decisions, write_report
from vimlrp.errors import InputError


def written(folder, *audit, **options):
    return write_report(
        folder, *audit, **{"about": ABOUT, "preprocessing": PREPROCESSING} | options
    )


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("pictures"))


def test_findings_json_holds_every_figure(audit, tmp_path):
    found, screening, (one,) = audit
    broken = replace(one, effects=(Effect("removal", float("nan"), -1.0, 1.0, 0),))
    files = written(tmp_path, found, screening, (one, broken))

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(files[1].read_text(), parse_constant=refuse)
    assert content["about"] == ABOUT
    assert content["data"]["samples"] == 32
    assert content["data"]["accuracy"] == 0.75
    first, second = content["findings"]
    assert (first["id"], second["id"]) == ("1-relevance", "1-relevance-2")
    assert first["prevalence"] == 6 / 16
    assert first["effects"][1] == {
        "kind": "insertion",
        "mean": 2.0,
        "low": 1.25,
        "high": 2.75,
        "count": 40,
        "attack_rate": 0.3,
    }
    assert first["effects"][0]["attack_rate"] is None
    assert second["effects"][0]["mean"] is None
    assert first["carriers"][0] == {"sample": "1/16.png", "score": 2.0}
    flagged, quiet, latent = content["screening"]["classes"]
    assert flagged["cluster"] == ["1/16.png", "1/17.png", "1/18.png"]
    assert "cluster" not in quiet
    assert latent["channel"] == "latent"


def test_about_may_hold_anything(audit, tmp_path):
    about = {
        "versions": {"torch": "2"},
        "sizes": np.arange(2),
        "rate": float("inf"),
        "at": tmp_path,
    }
    files = written(tmp_path, *audit[:2], (), about=about)
    shown = json.loads(files[1].read_text())["about"]
    assert shown == {
        "versions": {"torch": "2"}, "sizes": [0, 1], "rate": None, "at": str(tmp_path),
    }  # fmt: skip


def test_samples_csv_has_a_row_a_sample(audit, tmp_path):
    found, screening, (one,) = audit
    other = finding(candidate(found, 1, 2, Channel.STATISTICS, local=False))
    originals = found.originals.copy()
    originals[20] = 17
    files = written(tmp_path, replace(found, originals=originals), screening, (one, other))
    rows = list(csv.DictReader(io.StringIO(files[2].read_text())))
    assert [row["sample"] for row in rows] == [sample.name for sample in found.samples]
    assert rows[20]["duplicate_of"] == "1/17.png"
    assert rows[17]["duplicate_of"] == ""
    assert float(rows[3]["probability"]) == pytest.approx(found.probabilities[3], rel=1e-5)
    assert (rows[4]["class"], rows[4]["predicted"]) == ("0", "1")
    assert rows[0]["cue_1"] == ""
    assert (rows[21]["cue_1"], rows[21]["cue_1_carrier"]) == ("1-relevance", "1")
    assert (rows[22]["cue_1_carrier"], rows[22]["cue_2"]) == ("0", "1-statistics")
    assert float(rows[17]["cue_1_score"]) == pytest.approx(2 - 3 / 15, rel=1e-5)


def decided(folder, content):
    path = folder / "decisions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_decisions_are_read(audit, tmp_path):
    found, _, (one,) = audit
    findings = (one, finding(candidate(found, 0)))
    content = {"format": 1, "decisions": {"1-relevance": {"decision": "accept", "note": "text"}}}
    decisions = read_decisions(decided(tmp_path, content), findings)
    assert decisions == {"1-relevance": "accept", "0-relevance": "open"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot be read as JSON"),
        ([], "holds no decisions"),
        ({"format": 2, "decisions": {}}, "holds no decisions"),
        ({"format": 1, "decisions": {"7-latent": {}}}, "decides on 7-latent, which are not among"),
        ({"format": 1, "decisions": {"1-relevance": {"decision": "maybe"}}}, "'maybe' on 1-rel"),
        ({"format": 1, "decisions": {"1-relevance": "accept"}}, "None on 1-relevance"),
    ],
)
def test_what_holds_no_decisions_is_refused(content, message, audit, tmp_path):
    with pytest.raises(InputError, match=message):
        read_decisions(decided(tmp_path, content), audit[2])


def test_a_missing_file_of_decisions_is_refused(audit, tmp_path):
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_decisions(tmp_path / "none.json", audit[2])


def test_identities_do_not_depend_on_other_classes(audit):
    found, _, (one,) = audit
    other = finding(candidate(found, 0))
    assert identities([other, one]) == ["0-relevance", "1-relevance"]
    assert identities([one]) == ["1-relevance"]
