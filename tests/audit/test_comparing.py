"""Classes among each other: known cues, known nulls, and what must not be flagged."""

from dataclasses import replace

import numpy as np
import pytest
from evidence import clean_evidence
from scipy import stats

from vimlrp.audit.records import Channel
from vimlrp.audit.screening import screen
from vimlrp.audit.screening.comparing import FEWEST_CLASSES, standings
from vimlrp.audit.screening.places import PLACES, place_mask, shares

COMPARISON = [Channel.COMPARISON]
NAMES = tuple(PLACES)


def drawn_toward(evidence, rows, place, strength=0.3):
    """The same, but a share of the relevance of some samples moves to a place."""
    maps = evidence.maps.astype(np.float64)
    mask = place_mask(place, 16, 16)
    maps[rows] *= 1 - strength
    maps[rows] += strength * mask / mask.sum()
    return replace(evidence, maps=maps.astype(np.float16))


@pytest.fixture(scope="module")
def clean():
    return clean_evidence(24, 24)


def table_of(effects, rng, per_class=24):
    """Shares whose logits are effects of classes, (M, P), and noise of samples; and the classes."""
    m = len(effects)
    logits = np.repeat(effects, per_class, axis=0)
    logits = logits + rng.standard_normal(logits.shape)
    rows = np.arange(m * per_class).reshape(m, per_class)
    return 1 / (1 + np.exp(1 - logits)), list(enumerate(rows))


def q_values(found):
    return stats.false_discovery_control([one.p_value for one in found])


@pytest.mark.parametrize("place", NAMES)
def test_a_class_that_is_drawn_to_a_place_is_flagged_there(clean, place):
    own = clean.of_class(7)
    screening = screen(drawn_toward(clean, own, place), channels=COMPARISON)
    (flagged,) = screening.flagged()
    assert (flagged.label, flagged.channel) == (7, Channel.COMPARISON)
    # A cue along an edge is one in the ring and in two corners, too.
    cue, named = (place_mask(name, 16, 16) for name in (place, flagged.place.name))
    assert (cue & named).sum() >= 0.4 * cue.sum()
    assert flagged.place.share > flagged.place.usual
    assert np.array_equal(flagged.cluster, own)
    assert screening.ranking()[0] == 7


def test_a_score_knows_no_groups_and_says_what_it_compared(clean):
    found = screen(clean, channels=COMPARISON)
    known = shares(clean.maps)
    assert len(found.scores) == 24
    assert not found.flagged()
    assert found.notes == ()
    for score in found.scores:
        assert np.isnan(score.connectivity)
        assert np.isnan(score.separability)
        assert np.isnan(score.contrast)
        assert score.eigengap is None
        assert score.count == 24
        k = NAMES.index(score.place.name)
        middles = [np.median(known[clean.of_class(c), k]) for c in range(24)]
        assert score.place.share == middles[score.label]
        assert score.place.usual == np.median(np.delete(middles, score.label))
        own = clean.of_class(score.label)
        assert np.array_equal(score.cluster, own[known[own, k] > score.place.usual])


def test_its_false_discoveries_are_controlled_apart(clean):
    changed = drawn_toward(clean, clean.of_class(3), "four corners")
    within = [Channel.RELEVANCE]
    both = screen(changed, draws=8, channels=[*within, *COMPARISON])
    for channels in (within, COMPARISON):
        alone = screen(changed, draws=8, channels=channels).scores
        joint = [score for score in both.scores if score.channel in channels]
        assert [s.label for s in joint] == [s.label for s in alone]
        assert [s.q_value for s in joint] == [s.q_value for s in alone]
    p_values = [score.p_value for score in both.scores]
    assert p_values == sorted(p_values)


def test_less_than_half_of_a_class_is_no_cue_of_the_class(clean):
    own = clean.of_class(7)
    found = screen(drawn_toward(clean, own[:9], "ring"), channels=COMPARISON)
    assert not found.flagged()


@pytest.mark.parametrize(
    "effects",
    [
        lambda rng, shape: np.zeros(shape),
        lambda rng, shape: 0.6 * rng.standard_normal(shape),
        lambda rng, shape: 0.6 * rng.standard_t(3, shape),
        lambda rng, shape: 0.6 * rng.laplace(size=shape),
    ],
    ids=["exchangeable", "normal", "Student 3", "Laplace"],
)
@pytest.mark.parametrize("classes", [20, 60])
def test_nothing_is_flagged_among_classes_of_one_kind(effects, classes):
    trials, wrong, small = 60, 0, []
    for seed in range(trials):
        rng = np.random.default_rng([seed, classes])
        found = standings(*table_of(effects(rng, (classes, len(NAMES))), rng))
        wrong += bool((q_values(found) <= 0.1).any())
        small.append(np.mean([one.p_value <= 0.05 for one in found]))
    # With nothing to find, the false-discovery rate is the chance of any flag: 0.1.
    assert stats.binomtest(wrong, trials, 0.1, alternative="greater").pvalue > 0.01
    error = np.std(small) / np.sqrt(trials)
    assert np.mean(small) <= 0.05 + 3 * error


def test_an_object_at_the_bottom_is_one_of_the_ways_in_which_classes_differ():
    rng = np.random.default_rng(0)
    effects = 0.6 * rng.standard_t(3, (40, len(NAMES)))
    effects[5, NAMES.index("bottom")] = 2.0
    found = standings(*table_of(effects, rng))
    assert found[5].place.name == "bottom"
    assert q_values(found)[5] > 0.1
    # The same among classes that hardly differ is a finding.
    effects = 0.1 * rng.standard_normal((40, len(NAMES)))
    effects[5, NAMES.index("bottom")] = 2.0
    found = standings(*table_of(effects, rng))
    assert q_values(found)[5] < 0.1


def test_a_small_class_needs_a_greater_effect():
    rng = np.random.default_rng(3)
    effects = 0.2 * rng.standard_normal((30, len(NAMES)))
    effects[4] = 1.0
    table, classes = table_of(effects, rng, per_class=400)
    many = standings(table, classes)[4]
    few = standings(table, [(c, rows[:20] if c == 4 else rows) for c, rows in classes])[4]
    assert few.deviation < many.deviation
    assert few.p_value > many.p_value


def test_the_order_of_shares_alone_counts():
    rng = np.random.default_rng(4)
    table, classes = table_of(0.3 * rng.standard_normal((25, len(NAMES))), rng)
    found, again = standings(table, classes), standings(table**3, classes)
    assert [one.p_value for one in found] == pytest.approx([one.p_value for one in again])
    assert [one.place.name for one in found] == [one.place.name for one in again]


def test_few_classes_are_not_compared_and_a_note_says_so(clean):
    rows = np.flatnonzero(clean.labels < FEWEST_CLASSES - 1)
    fields = ("labels", "predictions", "maps", "latent", "activations", "statistics")
    few = replace(
        clean,
        samples=clean.samples[: len(rows)],
        originals=np.arange(len(rows)),
        **{name: getattr(clean, name)[rows] for name in fields},
    )
    found = screen(drawn_toward(few, few.of_class(3), "ring"), channels=COMPARISON)
    assert not found.scores
    assert not found.problems
    (note,) = found.notes
    assert "19 have the 20 pictures" in note
    assert "20 classes are needed" in note
    assert standings(shares(few.maps), [(c, few.of_class(c)) for c in range(19)]) == []


def test_classes_with_few_pictures_or_no_relevance_are_left_out():
    evidence = clean_evidence(per_class=[24] * 21 + [19])
    maps = evidence.maps.copy()
    maps[:3] = np.nan
    maps[24:30] = 0
    found = screen(replace(evidence, maps=maps), channels=COMPARISON)
    assert {score.label for score in found.scores} == set(range(21)) - {1}
    counts = {score.label: score.count for score in found.scores}
    assert counts[0] == 21
    assert [(p.sample, p.kind, p.detail) for p in found.problems] == [
        ("class 1", "left out", "6 of 24 samples have no positive relevance to compare"),
        ("class 21", "not enough images", "19, needs 20"),
    ]


def test_a_class_is_listed_once_by_all_channels():
    evidence = clean_evidence(per_class=[20] * 20 + [19])
    found = screen(evidence, draws=8, channels=[Channel.RELEVANCE, *COMPARISON])
    assert [(p.sample, p.detail) for p in found.problems] == [("class 20", "19, needs 20")]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_maps_that_are_all_alike_flag_nothing(clean, value):
    found = screen(replace(clean, maps=np.full_like(clean.maps, value)), channels=COMPARISON)
    assert not found.flagged()
    assert all(score.p_value == 1 for score in found.scores)
