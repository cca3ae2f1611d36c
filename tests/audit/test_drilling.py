"""From one place to all carriers, on a network that learnt a cue."""

from dataclasses import replace

import numpy as np
import pytest
from cue_world import POISONED, found, one_place, score_of, world
from evidence import clean_evidence
from sklearn.metrics import average_precision_score

from vimlrp.audit.drilling import drill, expand
from vimlrp.audit.records import Channel
from vimlrp.errors import InputError


def test_seeds_of_one_corner_find_the_other_corners():
    _, data, _ = world()
    seeds = one_place(data)
    candidate, _ = found()
    truth = data.planted[candidate.members]
    assert len(seeds) < 0.5 * truth.sum()
    assert average_precision_score(truth, candidate.scores) > 0.9
    assert data.planted[candidate.carriers].mean() > 0.9
    assert len(candidate.carriers) > 0.8 * truth.sum()


def test_the_candidate_is_in_order():
    _, _, evidence = world()
    candidate, _ = found()
    assert (np.diff(candidate.scores) <= 0).all()
    assert candidate.carriers.tolist() == candidate.members[: len(candidate.carriers)].tolist()
    assert np.linalg.norm(candidate.direction) == pytest.approx(1, abs=1e-5)
    assert set(evidence.labels[candidate.members]) == {POISONED}
    shows = np.isin(candidate.members, candidate.carriers)
    projections = evidence.activations[candidate.members].astype(float) @ candidate.direction
    assert projections[shows].mean() > projections[~shows].mean()


def test_it_is_the_same_again():
    _, data, evidence = world()
    first, second = (expand(evidence, score_of(one_place(data)), seed=3) for _ in range(2))
    assert first.scores.tolist() == second.scores.tolist()


def test_copies_follow_their_original_and_count_once():
    _, data, evidence = world()
    originals = evidence.originals.copy()
    first = np.flatnonzero(data.planted)[0]
    originals[first + 1] = first
    candidate = expand(replace(evidence, originals=originals), score_of(one_place(data)))
    score = dict(zip(candidate.members.tolist(), candidate.scores.tolist(), strict=True))
    assert score[first] == score[first + 1]
    assert {first, first + 1} <= set(candidate.carriers.tolist())
    assert first + 1 not in candidate.seeds


def test_statistics_find_their_own_carriers_and_name_themselves():
    _, _, evidence = world()
    rng = np.random.default_rng(0)
    column = rng.normal(50, 3, len(evidence))
    odd = np.flatnonzero(evidence.labels == POISONED)[::3]
    column[odd] = rng.normal(90, 3, len(odd))
    names = ("jpeg_quality", "nothing")
    noise = rng.normal(size=len(evidence))
    statistics = np.stack([column, np.where(noise > 2, np.nan, noise)], 1).astype(np.float32)
    changed = replace(evidence, statistics=statistics, statistic_names=names)
    candidate = expand(changed, score_of(odd[:6], Channel.STATISTICS))
    assert set(candidate.carriers) == set(odd)
    assert [name for name, _ in candidate.statistics] == ["jpeg_quality"]
    assert candidate.statistics[0][1] == pytest.approx(1)


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_seeds_give_no_direction(count):
    model, data, evidence = world()
    candidate = drill(model, evidence, score_of(one_place(data)[:count]))
    assert not candidate.direction.any()
    assert len(candidate.carriers) == 0
    assert candidate.regions.shape == (0, 64, 64)


def test_a_cluster_of_the_whole_class_gives_no_direction():
    _, _, evidence = world()
    candidate = expand(evidence, score_of(evidence.of_class(POISONED)))
    assert not candidate.direction.any()


def test_constant_features_give_no_carriers():
    _, data, evidence = world()
    flat = replace(
        evidence,
        activations=np.ones_like(evidence.activations),
        latent=np.zeros_like(evidence.latent),
    )
    assert len(expand(flat, score_of(one_place(data))).carriers) == 0


def test_activations_beyond_the_range_of_their_type_do_no_harm():
    _, data, evidence = world()
    activations = evidence.activations.copy()
    activations[evidence.of_class(POISONED)[-1], 0] = np.inf
    candidate = expand(replace(evidence, activations=activations), score_of(one_place(data)))
    assert np.isfinite(candidate.direction).all()
    assert len(candidate.carriers) > 0


def test_clusters_of_other_evidence_are_refused():
    _, data, evidence = world()
    with pytest.raises(InputError, match="the evidence has"):
        expand(evidence, score_of([len(evidence)]))
    with pytest.raises(InputError, match="other classes"):
        expand(evidence, score_of(np.flatnonzero(data.labels != POISONED)[:5]))


def test_a_cluster_that_lacks_the_cue_leads_to_those_that_have_it():
    _, data, evidence = world()
    own = np.flatnonzero(data.labels == POISONED)
    lacking = own[~data.planted[own]]
    candidate = expand(evidence, score_of(lacking))
    assert set(candidate.carriers) == set(own[data.planted[own]])
    assert not set(candidate.seeds) & set(lacking)


@pytest.mark.parametrize(("unlike", "kept"), [(0, False), (3, True)])
def test_a_group_lacks_the_cue_only_if_nearly_every_other_class_is_like_it(unlike, kept):
    # Classes differ along the cue's direction too, and most of them may lie nearer to carriers.
    evidence = clean_evidence(classes=9, per_class=40)
    activations = np.random.default_rng(0).normal(0, 0.1, evidence.activations.shape)
    cluster = evidence.of_class(POISONED)[:15]
    activations[:, 0] += 5.0
    activations[evidence.labels == POISONED, 0] = 1.0
    activations[evidence.labels > 8 - unlike, 0] = 0.5
    activations[cluster, 0] = 4.0
    changed = replace(
        evidence,
        activations=activations.astype(np.float16),
        latent=np.zeros_like(evidence.latent),
    )
    candidate = expand(changed, score_of(cluster))
    assert set(candidate.carriers) == (
        set(cluster) if kept else set(evidence.of_class(POISONED)) - set(cluster)
    )
