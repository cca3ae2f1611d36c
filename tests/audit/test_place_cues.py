"""From a class of rotated pictures to a proof, on a network that knows it by its black corners."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from corner_world import NAMES, ROTATED, found, world
from cue_world import SIDE, prepared
from same_records import same

from vimlrp.audit.drilling import drill
from vimlrp.audit.drilling.place_cues import bystanders, drill_place
from vimlrp.audit.mitigating import evaluate_mitigation, mitigate
from vimlrp.audit.mitigating.attacking import attack_of
from vimlrp.audit.mitigating.drop_list import write_drop_list
from vimlrp.audit.mitigating.head_tuning import tune_head
from vimlrp.audit.records import Channel, Verdict
from vimlrp.audit.screening.places import PLACES, place_mask, shares
from vimlrp.audit.verifying import verify
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Box


def shares_at(evidence, place):
    return shares(evidence.maps)[:, list(PLACES).index(place.name)]


def test_the_rotated_class_alone_is_flagged_at_its_corners():
    screening, _, _ = found()
    (flagged,) = screening.flagged()
    assert NAMES[flagged.label] == "rotated"
    assert flagged.place.name == "four corners"


def test_all_its_pictures_carry_the_cue_by_falling_share():
    _, _, evidence = world()
    _, candidate, _ = found()
    assert set(candidate.carriers) == set(np.flatnonzero(evidence.labels == ROTATED))
    known = shares_at(evidence, candidate.place)
    assert candidate.scores == pytest.approx(np.sort(known[candidate.members])[::-1], rel=1e-6)
    assert candidate.local
    assert len(candidate.regions) == len(candidate.carriers)
    assert (candidate.regions == place_mask("four corners", SIDE, SIDE)).all()
    assert candidate.channel is Channel.COMPARISON


def test_bystanders_are_originals_of_other_classes_without_it():
    _, _, evidence = world()
    place = found()[1].place
    originals = evidence.originals.copy()
    originals[1] = 0
    rows = bystanders(replace(evidence, originals=originals), ROTATED, place)
    known = shares_at(evidence, place)
    expected = (known <= place.usual) & (evidence.labels != ROTATED)
    expected[1] = False
    assert rows.tolist() == np.flatnonzero(expected).tolist()


def test_the_direction_is_that_of_the_corners_and_not_of_the_class():
    model, data, evidence = world()
    candidate = found()[1]
    assert np.linalg.norm(candidate.direction) == pytest.approx(1, abs=1e-5)
    # The truth: pictures that no corner was pasted from, with black corners drawn onto them.
    plain = data.clean[:60]
    shown = np.where(place_mask("four corners", SIDE, SIDE)[..., None], np.uint8(0), plain)
    watched = Watched(model, evidence.layer)
    change = (watched.pooled(prepared(shown, model)) - watched.pooled(prepared(plain, model))).mean(
        0
    )
    along = torch.from_numpy(candidate.direction)
    assert float(change @ along / change.norm()) > 0.8


def test_the_proof_compares_with_other_classes():
    _, data, _ = world()
    model, finding = world()[0], found()[2]
    effects = {effect.kind: effect for effect in finding.effects}
    rotated = data.labels == ROTATED
    with torch.no_grad():
        shown, clean = (model(prepared(p[rotated], model)) for p in (data.pictures, data.clean))
    truth = float((shown - clean)[:, ROTATED].mean())
    assert finding.verdict is Verdict.CAUSAL
    assert -effects["removal"].mean == pytest.approx(truth, rel=0.3)
    assert effects["transplant"].mean == pytest.approx(truth, rel=0.3)
    assert effects["transplant"].attack_rate > 0.5
    assert "leaving pictures out would leave none" in finding.action


def test_it_is_called_clever_hans_by_boxes_alone():
    model, _, evidence = world()
    _, candidate, finding = found()
    assert finding.off_object is None
    assert not finding.clever_hans
    samples = tuple(replace(one, boxes=(Box((20, 20, 44, 44)),)) for one in evidence.samples)
    boxed = verify(model, replace(evidence, samples=samples), candidate)
    assert boxed.off_object == pytest.approx(1)
    assert boxed.clever_hans


def test_it_is_the_same_again():
    model, _, evidence = world()
    screening, candidate, finding = found()
    again = drill(model, evidence, screening.scores[0])
    assert np.array_equal(again.direction, candidate.direction)
    same(verify(model, evidence, again).effects, finding.effects)


def test_the_cue_is_put_into_pictures_that_lack_it():
    model, _, evidence = world()
    candidate = found()[1]
    attack = attack_of(Watched(model, evidence.layer), evidence, candidate)
    hosts = bystanders(evidence, ROTATED, candidate.place)
    assert len(attack.clean) == min(256, len(hosts))
    assert ROTATED not in attack.labels
    with torch.no_grad():
        assert (model(attack.attacked).argmax(1) == ROTATED).float().mean() > 0.5


def test_a_mitigation_takes_the_effect_and_its_cost_counts_the_class_itself():
    model, _, evidence = world()
    finding = found()[2]
    fix = mitigate(model, evidence, finding)
    report = evaluate_mitigation(model, evidence, finding, fix)
    assert report.recovery > 0.7
    assert report.after.attack_rate < 0.1
    # Nothing but the cue tells this class, so to be blind to it costs its pictures.
    assert report.cost > 0.02


def test_lists_and_heads_are_refused_with_what_to_do(tmp_path):
    model, _, evidence = world()
    candidate = found()[1]
    with pytest.raises(InputError, match=r"nearly all pictures of rotated .* crop or inpaint"):
        write_drop_list(tmp_path / "drop.csv", evidence, candidate)
    assert not (tmp_path / "drop.csv").exists()
    with pytest.raises(InputError, match=r"0 samples of the class .* crop or inpaint"):
        tune_head(model, evidence, candidate)


def test_what_nothing_recovers_says_what_else_to_do():
    model, _, evidence = world()
    deaf = copy.deepcopy(model)
    with torch.no_grad():
        deaf.get_classifier().weight[ROTATED] = 0  # so that there is no effect to recover
    with pytest.raises(InputError, match=r"no direction .* crop or inpaint .*four corners"):
        mitigate(deaf, evidence, found()[2])


@pytest.mark.parametrize("lacking", ["carriers", "others"])
def test_too_few_pictures_on_either_side_give_no_direction(lacking):
    model, _, evidence = world()
    score = found()[0].scores[0]
    usual = 1.0 if lacking == "carriers" else -1.0
    changed = replace(score, place=replace(score.place, usual=usual))
    candidate = drill_place(model, evidence, changed)
    assert not candidate.direction.any()
    assert len(candidate.carriers) == 0
    assert candidate.regions.shape == (0, SIDE, SIDE)
    assert not candidate.local
    assert verify(model, evidence, candidate).verdict is Verdict.NOT_ENOUGH


def test_few_pictures_without_the_cue_prove_nothing():
    model, _, evidence = world()
    candidate = found()[1]
    place = replace(candidate.place, usual=-1.0)
    finding = verify(model, evidence, replace(candidate, place=place))
    assert finding.verdict is Verdict.NOT_ENOUGH
    assert "0 samples of other classes without the cue" in finding.notes[0]


def test_a_score_without_a_place_is_refused():
    model, _, evidence = world()
    score = found()[0].scores[0]
    for place in (None, replace(score.place, name="middle")):
        with pytest.raises(InputError, match="names no place of four corners"):
            drill(model, evidence, replace(score, place=place))
