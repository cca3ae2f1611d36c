"""Proofs on networks whose reliance is known: learnt, planted without being used, or exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cue_world import POISONED, SIDE, found, prepared, score_of, world
from PIL import Image
from same_records import same

from vimlrp.audit.drilling import drill
from vimlrp.audit.records import Candidate, Channel, Verdict
from vimlrp.audit.verifying import verify
from vimlrp.audit.verifying.ownership import by_nature, off_object, without_objects
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Box
from vimlrp.inputs import preprocessing_of


def by_kind(finding):
    return {effect.kind: effect for effect in finding.effects}


def true_effect(rows):
    """Logit with the planted cue less logit of the same picture without it."""
    model, data, _ = world()
    with torch.no_grad():
        shown, clean = (model(prepared(p[rows], model)) for p in (data.pictures, data.clean))
    return (shown - clean)[:, POISONED].numpy()


def test_a_learnt_cue_is_causal_and_its_effect_is_near_the_truth():
    candidate, finding = found()
    effects = by_kind(finding)
    truth = true_effect(candidate.carriers[: len(candidate.regions)]).mean()
    assert finding.verdict is Verdict.CAUSAL
    assert -effects["removal"].mean == pytest.approx(truth, rel=0.35)
    assert effects["insertion"].mean == pytest.approx(truth, rel=0.6)
    assert effects["transplant"].attack_rate > 0.2
    for effect in finding.effects:
        assert effect.low <= effect.mean <= effect.high


def test_a_causal_cue_awaits_acceptance_unless_something_says_that_it_is_off_the_object():
    _, finding = found()
    assert finding.off_object is None
    assert not finding.clever_hans
    assert "accept" in finding.action


@pytest.mark.parametrize(
    ("corners", "expected"), [((26, 26, 38, 38), True), ((0, 0, 64, 64), False)]
)
def test_boxes_decide_whether_it_is_clever_hans(corners, expected):
    model, _, evidence = world()
    candidate, _ = found()
    samples = tuple(replace(sample, boxes=(Box(corners),)) for sample in evidence.samples)
    finding = verify(model, replace(evidence, samples=samples), candidate)
    assert finding.clever_hans is expected
    assert finding.off_object == pytest.approx(float(expected), abs=0.1)


def with_masks(evidence, rows, masks, folder):
    """Evidence whose samples have masks of their objects."""
    samples = list(evidence.samples)
    for row, mask in zip(rows, masks, strict=True):
        path = folder / f"{row}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)
        samples[row] = replace(samples[row], masks=(path,))
    return replace(evidence, samples=tuple(samples))


def test_what_lies_off_the_object_has_to_be_causal_by_itself(tmp_path):
    model, data, evidence = world()
    candidate, _ = found()
    rows = candidate.carriers[: len(candidate.regions)]
    # The cue is the object's, and the regions reach to a spot off it that the model ignores.
    regions = candidate.regions | data.masks[rows]
    regions[:, 28:36, 28:36] = True
    whole = replace(candidate, regions=regions)
    owned = with_masks(evidence, rows, data.masks[rows], tmp_path)
    assert verify(model, evidence, whole).verdict is Verdict.CAUSAL
    finding = verify(model, owned, whole)
    assert finding.verdict is Verdict.ASSOCIATIVE
    assert not finding.clever_hans
    assert "may be the object's" in finding.notes[-1]
    # The spot is the object, and the cue lies off it.
    spot = np.zeros_like(regions)
    spot[:, 28:36, 28:36] = True
    finding = verify(model, with_masks(evidence, rows, spot, tmp_path), whole)
    assert finding.verdict is Verdict.CAUSAL
    assert finding.clever_hans
    assert "has its effect too" in finding.notes[-1]


def test_parts_off_the_object_are_counted_in_pixels_and_by_masks_alone(tmp_path):
    model, _, evidence = world()
    preprocessing = preprocessing_of(model)
    thing = np.zeros((1, SIDE, SIDE), bool)
    thing[0, :, :20] = True
    known = with_masks(evidence, [0], thing, tmp_path)
    region = np.zeros((1, SIDE, SIDE), bool)
    region[0, 10:20, 10:40] = True
    left = without_objects(known.samples[:1], region, preprocessing)
    expected = region.copy()
    expected[0, :, :23] = False  # and an edge of a twentieth of the side, 3 pixels
    np.testing.assert_array_equal(left, expected)
    region[0, :, 24:] = False  # one of fourteen columns lies off it; below, none to speak of
    assert without_objects(known.samples[:1], region, preprocessing).sum() == 10
    region[0, :, 23:] = False
    assert not without_objects(known.samples[:1], region, preprocessing).any()
    boxed = replace(evidence.samples[0], boxes=(Box((0, 0, 20, SIDE)),))
    assert not without_objects([boxed], region, preprocessing).any()


def test_masks_that_are_gone_are_told_and_not_passed_over(tmp_path):
    model, _, evidence = world()
    candidate, finding = found()
    thing = np.zeros((len(candidate.carriers), SIDE, SIDE), bool)
    thing[:, 20:44, 20:44] = True
    known = with_masks(evidence, candidate.carriers, thing, tmp_path)
    assert not any("not there any more" in note for note in verify(model, known, candidate).notes)
    for path in tmp_path.iterdir():
        path.unlink()
    without = verify(model, known, candidate)
    assert any("not there any more" in note for note in without.notes)
    assert without.off_object is None
    same(without.effects, finding.effects)


def test_a_region_that_the_model_ignores_is_no_cause():
    model, _, evidence = world()
    candidate, _ = found()
    # The same samples, but a spot of the background that has nothing in it.
    regions = np.zeros_like(candidate.regions)
    regions[:, 30:33, 1:4] = True
    finding = verify(model, evidence, replace(candidate, regions=regions))
    assert finding.verdict in (Verdict.UNUSED, Verdict.ASSOCIATIVE)
    assert not finding.clever_hans
    assert abs(by_kind(finding)["transplant"].mean) < 0.2 * true_effect(candidate.carriers).mean()


def test_it_is_the_same_again():
    model, _, evidence = world()
    candidate, finding = found()
    same(verify(model, evidence, candidate).effects, finding.effects)


def test_compression_of_whole_pictures_is_non_local_and_off_the_object_by_nature():
    candidate, finding = found_by_truth("jpeg")
    assert not candidate.local
    assert finding.verdict is Verdict.NON_LOCAL
    assert "JPEG" in finding.notes[0]
    assert finding.clever_hans
    assert by_kind(finding)["insertion"].attack_rate > 0.2


def found_by_truth(cue):
    """As `found`, with some carriers for seeds: this cue has no place to cluster by."""
    model, data, evidence = world(cue)
    candidate = drill(model, evidence, score_of(np.flatnonzero(data.planted)[:10]))
    return candidate, verify(model, evidence, candidate)


def test_few_carriers_prove_nothing():
    model, _, evidence = world()
    candidate, _ = found()
    few = replace(candidate, carriers=candidate.carriers[:7], regions=candidate.regions[:7])
    finding = verify(model, evidence, few)
    assert finding.verdict is Verdict.NOT_ENOUGH
    assert finding.effects == ()
    assert "7 carriers" in finding.notes[0]
    assert "Add pictures" in finding.action


@pytest.mark.parametrize("change", ["empty regions", "no carriers", "all carry"])
def test_candidates_without_a_proof_are_not_enough(change):
    model, _, evidence = world()
    candidate, _ = found()
    if change == "empty regions":
        candidate = replace(candidate, regions=np.zeros_like(candidate.regions))
    elif change == "no carriers":
        none = np.zeros(0, np.int64)
        candidate = replace(candidate, carriers=none, local=False, regions=candidate.regions[:0])
    else:
        candidate = replace(candidate, carriers=candidate.members)
        without = np.setdiff1d(evidence.of_class(POISONED), candidate.carriers)
        assert len(without) == 0
    assert verify(model, evidence, candidate).verdict is Verdict.NOT_ENOUGH


def test_a_class_alone_has_nowhere_to_put_the_cue():
    model, _, evidence = world()
    candidate, _ = found()
    alone = replace(evidence, labels=np.full_like(evidence.labels, POISONED))
    finding = verify(model, alone, candidate)
    assert [effect.kind for effect in finding.effects] == ["removal"]
    assert finding.verdict is Verdict.ASSOCIATIVE
    assert "other classes" in finding.notes[-1]


def test_copies_are_no_further_evidence():
    model, _, evidence = world()
    candidate, _ = found()
    originals = evidence.originals.copy()
    originals[candidate.carriers] = candidate.carriers.min()
    finding = verify(model, replace(evidence, originals=originals), candidate)
    assert finding.verdict is Verdict.NOT_ENOUGH


def test_evidence_of_another_model_is_refused():
    model, _, evidence = world()
    with pytest.raises(InputError, match="another model"):
        verify(model, replace(evidence, layer="layers.3"), found()[0])


def test_share_off_the_object_is_counted_in_pixels():
    model, _, evidence = world()
    sample = replace(evidence.samples[0], boxes=(Box((0, 0, SIDE / 2, SIDE)),))
    region = np.zeros((1, SIDE, SIDE), bool)
    region[0, 10:20, 24:36] = True  # 8 of 12 columns lie in the box
    preprocessing = preprocessing_of(model)
    assert off_object([sample], region, preprocessing) == pytest.approx(1 / 3)
    assert off_object(evidence.samples[:1], region, preprocessing) is None


@pytest.mark.parametrize(
    ("statistics", "edge", "expected"),
    [
        ((("frame_top", 0.99),), True, True),
        ((("frame_top", 0.99),), False, False),
        ((), True, False),
    ],
)
def test_a_frame_is_off_the_object_by_nature(statistics, edge, expected):
    regions = np.zeros((2, 40, 40), bool)
    regions[:, : 3 if edge else 0] = True
    regions[:, 20, 20] = True
    rows = np.arange(2)
    candidate = Candidate(
        0, Channel.STATISTICS, rows, np.ones(3), rows, np.ones(2), rows, regions, True, statistics
    )
    assert by_nature(candidate) is expected
