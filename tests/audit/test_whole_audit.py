"""From a folder and a model to a finding, by the command line alone, with nothing replaced."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from cue_world import CLASSES, POISONED, plant, trained

from vimlrp.audit.reporting.decisions import FORMAT
from vimlrp.audit.stages import read_evidence
from vimlrp.cli import main
from vimlrp.models import name_classes

CARRIERS = 25


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A quarter of one class carries a mark in a random corner; the folder, and the truth."""
    root = tmp_path_factory.mktemp("whole")
    data = plant(root / "pictures", "patch", CARRIERS / 100, count=100)
    model = trained(data)
    name_classes(model, CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        # The model is not timm's to create by name: its preprocessing is its own.
        patch.setattr("vimlrp.cli.audit_options.load_model", lambda *_, **__: model)
        first = call("audit", root / "pictures", "--out", root / "out")
        fixed = call("audit", "fix", "--out", root / "out")
        decisions = root / "decisions.json"
        decisions.write_text(json.dumps(exported(root / "out", "reject")))
        shutil.copytree(root / "out", root / "again")
        rejected = call("audit", "fix", "--out", root / "again", "--decisions", decisions)
        shown = call("audit", "report", "--out", root / "again", "--decisions", decisions)
    return SimpleNamespace(
        out=root / "out",
        again=root / "again",
        data=data,
        first=first,
        fixed=fixed,
        rejected=rejected,
        shown=shown,
    )


def exported(out, choice):
    """What the report's button writes."""
    (finding,) = json.loads((out / "findings.json").read_text())["findings"]
    return {"format": FORMAT, "decisions": {finding["id"]: {"decision": choice}}}


def call(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def test_the_marked_class_alone_is_flagged_and_proven(audited):
    out, first = audited.out, audited.first
    assert first.exit_code == 0, first.output
    assert "5 classes screened, 1 flagged" in first.output
    assert f"{CLASSES[POISONED]}: causal" in first.output
    (finding,) = json.loads((out / "findings.json").read_text())["findings"]
    assert finding["class"] == POISONED
    assert finding["verdict"] == "causal"
    assert not finding["clever_hans"]  # no box says where the object is
    effects = {effect["kind"]: effect for effect in finding["effects"]}
    assert effects["removal"]["high"] < 0 < effects["insertion"]["low"]
    assert effects["transplant"]["low"] > 0
    assert "report.html" in first.output
    assert "causal" in (out / "report.html").read_text()


def test_its_carriers_are_those_that_were_marked(audited):
    out, data, fixed = audited.out, audited.data, audited.fixed
    assert fixed.exit_code == 0, fixed.output
    (drop_list,) = (out / "fixes").glob(f"{POISONED:05d}-*.csv")
    dropped = {line.split(",")[0] for line in drop_list.read_text().splitlines()[1:]}
    names = np.array([sample.name for sample in data.samples])
    marked = set(names[data.planted])
    assert marked <= dropped
    assert len(dropped - marked) <= 2  # of 75 without the mark
    evidence = read_evidence(out)
    assert len(evidence) == len(data.samples)


def test_the_correction_takes_the_effect_and_leaves_the_accuracy(audited):
    out, fixed = audited.out, audited.fixed
    header, row = (out / "fixes" / "fixes.csv").read_text().splitlines()
    done = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(done["recovery"]) >= 0.7
    assert float(done["cost"]) <= 0.01
    assert float(done["attacked_after"]) > float(done["attacked_before"])
    assert any((out / "fixes").glob(f"{POISONED:05d}-*.safetensors"))
    assert "wrote" in fixed.output


def test_what_a_reader_rejects_is_left_alone_and_shown(audited):
    assert audited.rejected.exit_code == 0, audited.rejected.output
    assert "safetensors" in audited.fixed.output
    assert "safetensors" not in audited.rejected.output
    assert [path.name for path in (audited.again / "fixes").iterdir()] == ["fixes.csv"]
    assert audited.shown.exit_code == 0, audited.shown.output
    assert 'value="reject" checked' in (audited.again / "report.html").read_text()
