"""`vimlrp audit`: its first stages with a small model, and how it hands on to the later ones."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from audit_data import contents, photos
from click.testing import CliRunner
from safetensors.torch import save_file

from vimlrp.audit.records import Candidate, Channel, ClassScore, Effect, Finding, Screening, Verdict
from vimlrp.audit.stages import read_evidence
from vimlrp.audit.workspace import Workspace
from vimlrp.cli import main
from vimlrp.errors import InputError
from vimlrp.evaluation import parts
from vimlrp.evaluation.parts import Part
from vimlrp.files import atomic_write


def weights(folder, seed):
    torch.manual_seed(seed)
    model = timm.create_model("test_vim", num_classes=10)
    path = folder / f"test_vim{seed}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


# The weights are random, so that on pictures of several classes the model agrees by chance.
BY_CHANCE = 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("weights"), 0)


@pytest.fixture
def folder(tmp_path):
    return photos(tmp_path / "photos")


def call(*words):
    return CliRunner().invoke(main, ["audit", *map(str, words)])


def begin(stage, folder, checkpoint, out, *words):
    options = ("--model", "test_vim", "--num-classes", 10, "--checkpoint", checkpoint)
    return call(*stage, folder, *options, "--out", out, "--batch-size", 2, *words)


def flat(result):
    return " ".join(result.output.split())


def test_help_names_the_stages_and_hides_the_default():
    result = call("--help")
    assert result.exit_code == 0
    for stage in ("index", "predict", "explain", "screen", "drill", "verify", "fix", "report"):
        assert f"\n  {stage} " in result.output
    assert "\n  run " not in result.output
    assert call().exit_code == 2  # nothing was given
    assert "--per-class" in call("explain", "--help").output


def test_the_first_stages_one_by_one_end_as_all_at_once(folder, checkpoint, tmp_path):
    out = tmp_path / "out"
    found = begin(("index",), folder, checkpoint, out)
    assert found.exit_code == 0, found.output
    assert "6 of 6 pictures are readable, 0 are copies" in found.output
    assert not (out / "parts" / "explain").exists()
    found = begin(("predict",), folder, checkpoint, out)
    assert found.exit_code == 0, found.output
    assert "top 5" in found.output
    found = begin(("explain",), folder, checkpoint, out)
    assert "recorded layer: layers.1, 32 channels" in found.output
    assert (
        f"wrote {out / 'manifest.json'}" in found.output.replace("\n", "")
        or "wrote" in found.output
    )
    begin(("explain",), folder, checkpoint, tmp_path / "whole")
    ours, whole = contents(out), contents(tmp_path / "whole")
    assert {k: v for k, v in ours.items() if "predict" not in k} == whole
    assert len(read_evidence(out)) == 6


def test_what_was_wrong_is_listed_and_gives_exit_code_one(folder, checkpoint, tmp_path):
    (folder / "0" / "text.png").write_text("no picture")
    photos(folder, ("zebra",), count=1)
    found = begin(("explain",), folder, checkpoint, tmp_path / "out")
    assert found.exit_code == 1, found.output
    rows = list(csv.DictReader((tmp_path / "out" / "problems.csv").open(encoding="utf-8")))
    assert {(row["sample"], row["problem"]) for row in rows} >= {
        ("0/text.png", "picture cannot be read"),
        ("zebra/0.png", "class missing from the model"),
    }
    assert "| picture cannot be read | the sample | 1 |" in found.output


def test_a_model_at_chance_is_told_and_gives_exit_code_one(checkpoint, tmp_path):
    folder = photos(tmp_path / "photos", tuple("0123456789"), count=2)
    found = begin(("explain",), folder, checkpoint, tmp_path / "out")
    assert found.exit_code == 1
    assert "no better than chance" in flat(found)
    assert "| accuracy at chance | the sample | 1 |" in found.output


def test_without_labels_the_report_says_what_was_audited(checkpoint, tmp_path):
    folder = photos(tmp_path / "photos", ("",), count=4)
    found = begin(("explain",), folder, checkpoint, tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "the class that the model predicts for each picture" in flat(found)


def test_pictures_are_chosen_by_options(folder, checkpoint, tmp_path):
    begin(("explain",), folder, checkpoint, tmp_path / "a", "--only", "7", "--per-class", 2)
    assert read_evidence(tmp_path / "a").labels.tolist() == [7, 7]
    begin(("explain",), folder, checkpoint, tmp_path / "b", "--limit", 3)
    assert read_evidence(tmp_path / "b").labels.tolist() == [0, 0, 7]


def test_interrupted_it_says_how_to_go_on_and_ends_with_the_same_bytes(
    folder, checkpoint, tmp_path, monkeypatch
):
    begin(("explain",), folder, checkpoint, tmp_path / "whole")
    write, left = parts.atomic_write, 5

    def interrupted(path, data):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return write(path, data)

    monkeypatch.setattr(parts, "atomic_write", interrupted)
    found = begin(("explain",), folder, checkpoint, tmp_path / "out")
    assert found.exit_code == 130
    assert "the same command goes on" in flat(found)
    monkeypatch.undo()
    assert begin(("explain",), folder, checkpoint, tmp_path / "out").exit_code == BY_CHANCE
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "5"), "no picture of the classes asked for"),
        (("--only", "zebra"), "the model knows no names"),
        (("--layer", "layers.9"), "no layer 'layers.9'"),
        (("--device", "abacus"), "cannot use the device"),
        (("--batch-size", 0), "0 is not in the range"),
    ],
)
def test_what_cannot_start_gives_exit_code_two(folder, checkpoint, tmp_path, words, message):
    for stage in ((), ("explain",)):
        found = begin(stage, folder, checkpoint, tmp_path / "out", *words)
        assert found.exit_code == 2
        assert message in flat(found)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_model_or_of_something_else_is_kept(folder, checkpoint, tmp_path):
    out = tmp_path / "out"
    begin(("explain",), folder, checkpoint, out)
    before = contents(out)
    other = weights(tmp_path, 1)
    found = begin(("explain",), folder, other, out)
    assert found.exit_code == 2
    assert "other settings" in flat(found)
    assert "weights_sha256" in flat(found)
    assert contents(out) == before
    assert begin(("explain",), folder, other, out, "--overwrite").exit_code == BY_CHANCE
    assert read_evidence(out).labels.tolist() == [0, 0, 0, 7, 7, 7]
    found = begin(("explain",), folder, checkpoint, folder)
    assert found.exit_code == 2
    assert "holds files and no audit" in flat(found)


def test_stages_that_follow_need_those_before(folder, checkpoint, tmp_path):
    found = call("screen", "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert "holds no audit" in flat(found)
    begin(("index",), folder, checkpoint, tmp_path / "out")
    found = call("screen", "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert "stage 'explain'" in flat(found)
    begin(("explain",), folder, checkpoint, tmp_path / "out")
    for stage in ("drill", "verify", "fix", "report"):
        found = call(stage, "--out", tmp_path / "out")
        assert found.exit_code == 2, found.output
        assert "not screened yet" in flat(found)


def test_weights_that_were_replaced_are_noticed_by_stages_that_follow(folder, tmp_path):
    path = weights(tmp_path, 0)
    begin(("explain",), folder, path, tmp_path / "out")
    path.write_bytes(weights(tmp_path, 1).read_bytes())
    found = call("drill", "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert "with other weights" in flat(found)


class StandIns:
    """Later stages whose results are known, to see what the command makes of them."""

    def __init__(self):
        self.calls = []
        self.flagged = (7,)
        self.refused = ()

    def screen(self, evidence, *, rate, seed, workers, progress):
        self.calls.append(f"screen {rate} {seed}")
        return Screening(
            tuple(
                ClassScore(
                    label, Channel.LATENT, 3, 0.1, 1.0, 2.0, 2, 0.01, 0.02, label in self.flagged,
                    evidence.of_class(label)[:1],
                )
                for label in (7, 0)
            ),
            rate,
        )  # fmt: skip

    def drill(self, model, evidence, score, *, seed):
        self.calls.append(f"drill {score.label}")
        if score.label in self.refused:
            raise InputError("too few pictures")
        rows = evidence.of_class(score.label)
        return Candidate(
            score.label, score.channel, rows[:1], np.ones(32, np.float32), rows,
            np.ones(len(rows), np.float32), rows[:2], np.zeros((0, 64, 64), bool), False,
        )  # fmt: skip

    def verify(self, model, evidence, candidate, *, seed):
        self.calls.append(f"verify {candidate.label}")
        effect = Effect("removal", -1.0, -2.0, -0.5, 2)
        return Finding(candidate, (effect,), Verdict.NON_LOCAL, None, False, "Look closer.")

    def write_report(
        self, folder, evidence, screening, findings, *, about, problems, probes, decisions,
        preprocessing,
    ):  # fmt: skip
        self.calls.append(f"report {len(findings)}")
        text = json.dumps({key: str(value) for key, value in about.items()})
        (Path(folder) / "report.json").write_text(text)
        assert preprocessing.size == (64, 64)
        return [Path(folder) / "report.json"]

    def write_drop_list(self, path, evidence, candidate):
        return atomic_write(path, b"name")

    def mitigate(self, model, evidence, finding, *, seed):
        self.calls.append(f"mitigate {finding.candidate.label}")
        if finding.candidate.label in self.refused:
            raise InputError("the finding is not proven")
        return SimpleNamespace(save=lambda path: atomic_write(path, b"directions"))

    def evaluate_mitigation(self, model, evidence, finding, change, *, seed):
        before = SimpleNamespace(clean=0.9, attacked=0.25, attack_rate=0.5, effect=4.0)
        after = SimpleNamespace(clean=0.875, attacked=0.75, attack_rate=0.125, effect=1.0)
        return SimpleNamespace(before=before, after=after, count=8, recovery=0.75, cost=0.025)

    def probe(self, model, data, *, seed, progress):
        self.calls.append(f"probe {len(data.samples)}")


@pytest.fixture
def stand_ins(monkeypatch):
    found = StandIns()
    places = {
        "screening": ["screen"], "drilling": ["drill"], "verifying": ["verify"],
        "reporting": ["write_report"], "probing": ["probe"],
        "mitigating.drop_list": ["write_drop_list"],
        "mitigating": ["mitigate", "evaluate_mitigation"],
    }  # fmt: skip
    for module, names in places.items():
        for name in names:
            monkeypatch.setattr(f"vimlrp.audit.{module}.{name}", getattr(found, name))
    return found


def test_all_stages_run_in_order_and_are_read_again(folder, checkpoint, tmp_path, stand_ins):
    out = tmp_path / "out"
    found = begin((), folder, checkpoint, out, "--rate", 0.2, "--seed", 3, "--probe")
    assert found.exit_code == BY_CHANCE, found.output
    first = ["screen 0.2 3", "drill 7", "verify 7", "probe 6", "report 1"]
    assert stand_ins.calls == first
    assert "7: non-local, by latent" in found.output
    assert "removal: -1 [-2, -0.5] over 2 pairs" in found.output
    assert "Look closer." in found.output
    about = json.loads((out / "report.json").read_text())
    assert about["command"].startswith("vimlrp")
    begin((), folder, checkpoint, out, "--rate", 0.2, "--seed", 3)
    assert stand_ins.calls == [*first, "report 1"]


def test_another_rate_screens_and_proves_anew(folder, checkpoint, tmp_path, stand_ins):
    begin((), folder, checkpoint, tmp_path / "out")
    stand_ins.calls.clear()
    found = call("screen", "--out", tmp_path / "out", "--rate", 0.3)
    assert "2 classes screened, 1 flagged at a false-discovery rate of 0.3" in found.output
    assert stand_ins.calls == ["screen 0.3 0"]
    call("report", "--out", tmp_path / "out")
    assert stand_ins.calls[1:] == ["report 0"]  # findings of the earlier screening do not count
    found = call("verify", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert stand_ins.calls[2:] == ["drill 7", "verify 7"]
    call("report", "--out", tmp_path / "out")
    assert stand_ins.calls[4:] == ["report 1"]


@pytest.mark.parametrize("lacking", ["channels", "statistics"])
def test_a_screening_by_another_version_is_refused_and_made_anew(
    folder, checkpoint, tmp_path, stand_ins, lacking
):
    out = tmp_path / "out"
    begin((), folder, checkpoint, out)
    parts = Workspace.existing(out).parts
    old = parts["screening"]
    facts = {key: value for key, value in old.facts.items() if key != lacking}
    parts["screening"] = Part(old.arrays, old.problems, facts)
    for stage in ("drill", "report"):
        found = call(stage, "--out", out)
        assert found.exit_code == 2, found.output
        assert "screened by another version" in flat(found)
        assert "run the stage 'screen' again" in flat(found)
    stand_ins.calls.clear()
    found = call("screen", "--out", out)
    assert found.exit_code == 0, found.output
    assert stand_ins.calls == ["screen 0.1 0"]
    assert call("report", "--out", out).exit_code == BY_CHANCE


def test_a_class_may_be_drilled_though_it_is_not_flagged(folder, checkpoint, tmp_path, stand_ins):
    begin((), folder, checkpoint, tmp_path / "out")
    stand_ins.calls.clear()
    found = call("drill", "0", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert stand_ins.calls == ["drill 0"]
    assert "0: 2 of 3 pictures share a cue, nowhere in particular, by latent" in flat(found)
    found = call("drill", "4", "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert "4 could not be screened" in flat(found)


def test_a_class_that_cannot_be_drilled_costs_no_other(folder, checkpoint, tmp_path, stand_ins):
    stand_ins.flagged, stand_ins.refused = (0, 7), (7,)
    found = begin((), folder, checkpoint, tmp_path / "out")
    assert found.exit_code == 1
    assert stand_ins.calls == ["screen 0.1 0", "drill 7", "drill 0", "verify 0", "report 1"]
    assert "| no candidate by latent | the sample | 1 |" in found.output


def test_fixes_are_written_with_what_they_do(folder, checkpoint, tmp_path, stand_ins):
    stand_ins.flagged = (0, 7)
    begin((), folder, checkpoint, tmp_path / "out")
    stand_ins.refused = (7,)
    found = call("fix", "--out", tmp_path / "out")
    assert found.exit_code == 1, found.output
    assert "| cannot be mended | the sample | 1 |" in found.output
    listed = (tmp_path / "out" / "problems.csv").read_text(encoding="utf-8")
    assert "accuracy at chance" in listed  # of an earlier stage
    assert "the finding is not proven" in listed
    names = {path.name for path in (tmp_path / "out" / "fixes").iterdir()}
    assert names == {
        "00000-latent.csv", "00000-latent.safetensors", "00007-latent.csv", "fixes.csv",
    }  # fmt: skip
    (row,) = csv.DictReader((tmp_path / "out" / "fixes" / "fixes.csv").open(encoding="utf-8"))
    assert row["class"] == "0"
    assert [row[key] for key in ("recovery", "cost", "attacked_before", "attacked_after")] == [
        "0.75", "0.025", "0.25", "0.75",
    ]  # fmt: skip
