"""Corrections against their formula, and on a network that learnt a cue."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from cue_world import POISONED, found, patch, prepared, world
from helpers import enliven, seeded
from safetensors.torch import save_file

from vimlrp.audit.mitigating import MitigationReport, Outcome, evaluate_mitigation, mitigate
from vimlrp.audit.mitigating.drop_list import write_drop_list
from vimlrp.audit.mitigating.mitigation import Mitigation
from vimlrp.audit.records import Verdict
from vimlrp.audit.watching import stream_sum
from vimlrp.errors import InputError
from vimlrp.evaluation.fingerprints import weights_hash


def orthonormal(rank, width, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(width, rank)))
    return torch.from_numpy(q.T).float()


def correction(width=6, rank=2, threshold=None, layer="layer", fingerprint="", axis_seed=0):
    gate = torch.zeros(width)
    gate[0] = 1.0
    targets = torch.arange(rank).float() + 0.5
    return Mitigation(
        layer, orthonormal(rank, width, axis_seed), targets, gate, threshold, 0, fingerprint
    )


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 6, 4, 5), 1), ((3, 4, 5, 6), 3), ((3, 7, 6), 2), ((3, 6), 1)]
)
def test_the_correction_is_the_projection_onto_the_clean_hyperplane(shape, axis):
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    one = correction(rank=1)
    out = (a + one.corrected(a, axis)).movedim(axis, -1).reshape(-1, 6)
    h, before = one.directions[0], a.movedim(axis, -1).reshape(-1, 6)
    for row, old in zip(out, before, strict=True):
        torch.testing.assert_close(row, old + (0.5 - old @ h) / (h @ h) * h)


def test_every_direction_reaches_its_target_and_the_rest_stays():
    a = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0))
    two = correction()
    out = a + two.corrected(a, 2)
    torch.testing.assert_close(out @ two.directions.T, two.targets.expand(3, 7, 2))
    rest = torch.eye(6) - two.directions.T @ two.directions
    torch.testing.assert_close(out @ rest, a @ rest, atol=1e-5, rtol=1e-5)


def test_a_reactive_correction_touches_only_pictures_above_the_threshold():
    a = torch.zeros(2, 7, 6)
    a[1, 4, 0] = 3.0  # its greatest value over positions counts
    changed = correction(threshold=2.0).corrected(a, 2)
    assert not changed[0].any()
    assert changed[1].flatten(1).any(1).all()


def test_a_block_with_two_streams_is_corrected_in_their_sum():
    with seeded():
        model = timm.create_model("test_vim", num_classes=3).eval()
    enliven(model)
    fit = correction(width=32, layer="layers.1", fingerprint=weights_hash(model))
    seen = []
    with fit.attach(model):
        handle = model.get_submodule("layers.1").register_forward_hook(
            lambda _m, _a, out: seen.append(stream_sum(out))
        )
        with torch.no_grad():
            model(torch.randn(2, 3, 64, 64))
        handle.remove()
    reached = seen[0].float() @ fit.directions.T
    torch.testing.assert_close(reached, fit.targets.expand_as(reached), atol=1e-3, rtol=1e-3)


def test_a_learnt_cue_loses_its_effect_and_clean_pictures_keep_theirs():
    model, data, evidence = world()
    _, finding = found()
    fit = mitigate(model, evidence, finding)
    report = evaluate_mitigation(model, evidence, finding, fit)
    assert report.recovery > 0.75
    assert report.cost <= 0.01
    assert report.after.attacked > report.before.attacked
    # The same with the cue planted anew, which no region of the tool has touched.
    rng = np.random.default_rng(5)
    others = data.clean[data.labels != POISONED]
    shown = np.stack([patch(picture, rng)[0] for picture in others])
    pairs = [prepared(pictures, model) for pictures in (shown, others)]

    def effect():
        with torch.no_grad():
            return (model(pairs[0]) - model(pairs[1]))[:, POISONED].abs().median()

    before = effect()
    with fit.attach(model):
        after = effect()
    assert 1 - after / before > 0.7


@pytest.mark.parametrize(("rank", "reactive"), [(1, False), (2, True), (4, True)])
def test_rank_and_gate_can_be_chosen(rank, reactive):
    model, _, evidence = world()
    fit = mitigate(model, evidence, found()[1], rank=rank, reactive=reactive)
    assert (len(fit.directions), fit.reactive) == (rank, reactive)
    gram = fit.directions @ fit.directions.T
    torch.testing.assert_close(gram, torch.eye(rank), atol=1e-5, rtol=0)


def test_nothing_is_left_behind_also_after_an_error():
    model, data, evidence = world()
    fit = mitigate(model, evidence, found()[1])
    x = prepared(data.pictures[:2], model)
    model.train()
    with torch.no_grad():
        state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), fit.attach(model):
        raise ZeroDivisionError
    handle = fit.attach(model)
    handle.remove()
    handle.remove()
    evaluate_mitigation(model, evidence, found()[1], fit)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    with torch.no_grad(), fit.attach(model):
        corrected = model(x)
    with torch.no_grad():
        assert not torch.equal(model(x), corrected)


def test_a_saved_mitigation_does_the_same(tmp_path):
    model, data, evidence = world()
    fit = mitigate(model, evidence, found()[1])
    loaded = Mitigation.load(fit.save(tmp_path / "cue.safetensors"), model)
    x = prepared(data.pictures[:4], model)
    outputs = []
    for one in (fit, loaded):
        with torch.no_grad(), one.attach(model):
            outputs.append(model(x))
    assert torch.equal(*outputs)
    assert (loaded.threshold, loaded.label, loaded.layer) == (fit.threshold, fit.label, fit.layer)


def test_another_model_is_refused(tmp_path):
    model, _, evidence = world()
    fit = mitigate(model, evidence, found()[1])
    path = fit.save(tmp_path / "cue.safetensors")
    with seeded(1):
        other = timm.create_model("test_resnet", num_classes=5)
    with pytest.raises(InputError, match="fitted on a model with weights"):
        fit.attach(other)
    with pytest.raises(InputError, match="fitted on a model with weights"):
        Mitigation.load(path, other)


def test_files_that_hold_no_mitigation_are_refused(tmp_path):
    model, _, _ = world()
    path = tmp_path / "file.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        Mitigation.load(path, model)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="no vimlrp mitigation"):
        Mitigation.load(path, model)
    save_file({"directions": torch.ones(1, 3)}, path)
    with pytest.raises(InputError, match="no vimlrp mitigation"):
        Mitigation.load(path, model)
    known = json.dumps({"format": "vimlrp mitigation 1"})
    save_file({"directions": torch.ones(1, 3)}, path, metadata={"vimlrp": known})
    with pytest.raises(InputError, match="damaged"):
        Mitigation.load(path, model)
    save_file({"directions": torch.full((1, 3), torch.nan)}, path, metadata={"vimlrp": known})
    with pytest.raises(InputError, match="NaN"):
        Mitigation.load(path, model)


@pytest.mark.parametrize("verdict", [Verdict.ASSOCIATIVE, Verdict.UNUSED, Verdict.NOT_ENOUGH])
def test_what_is_not_proven_is_not_mitigated(verdict):
    model, _, evidence = world()
    with pytest.raises(InputError, match="proven effect"):
        mitigate(model, evidence, replace(found()[1], verdict=verdict))


def test_a_cue_that_cannot_be_put_in_is_refused():
    model, _, evidence = world()
    candidate, finding = found()
    alone = replace(evidence, labels=np.full_like(evidence.labels, POISONED))
    with pytest.raises(InputError, match="other classes"):
        mitigate(model, alone, finding)
    empty = replace(candidate, regions=np.zeros_like(candidate.regions))
    with pytest.raises(InputError, match="nothing to paste"):
        mitigate(model, evidence, replace(finding, candidate=empty))
    with pytest.raises(InputError, match="rank is 3"):
        mitigate(model, evidence, finding, rank=3)


def test_recovery_and_cost_are_ratios_of_the_outcomes():
    report = MitigationReport(Outcome(0.8, 0.2, 0.7, 4.0), Outcome(0.78, 0.6, 0.1, 1.0), 10)
    assert report.recovery == 0.75
    assert report.cost == pytest.approx(0.02)
    still = Outcome(0.8, 0.2, 0.7, 0.0)
    assert np.isnan(MitigationReport(still, still, 10).recovery)


def test_the_drop_list_names_the_carriers(tmp_path):
    _, _, evidence = world()
    candidate, _ = found()
    lines = write_drop_list(tmp_path / "drop.csv", evidence, candidate).read_text().splitlines()
    assert lines[0] == "name,path,class,score"
    names = [line.split(",")[0] for line in lines[1:]]
    assert names == [evidence.samples[i].name for i in candidate.carriers]
    scores = [float(line.split(",")[3]) for line in lines[1:]]
    assert scores == sorted(scores, reverse=True)
    none = replace(candidate, carriers=np.zeros(0, np.int64))
    with pytest.raises(InputError, match="no carriers"):
        write_drop_list(tmp_path / "drop.csv", evidence, none)
