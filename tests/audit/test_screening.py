from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from evidence import clean_evidence, with_channels, with_compression, with_corner_mark
from scipy import stats
from threadpoolctl import threadpool_info

from vimlrp.audit.records import Channel
from vimlrp.audit.screening import equal_count, screen, with_one_thread
from vimlrp.audit.screening.embedding import coordinates, features
from vimlrp.audit.screening.graphs import affinity
from vimlrp.audit.screening.spectral import spectrum
from vimlrp.errors import InputError

MAPS = [Channel.RELEVANCE]


@pytest.fixture(scope="module")
def clean():
    return clean_evidence(6, 40)


@pytest.fixture(scope="module")
def planted(clean):
    """A cue of each kind in a class of its own, and who shows it."""
    evidence, mark = with_corner_mark(clean, 1, 0.25)
    evidence, neurons = with_channels(evidence, 3, 0.25, strength=0.7)
    evidence, files = with_compression(evidence, 4, 0.3)
    return evidence, {
        (1, Channel.RELEVANCE): mark,
        (3, Channel.LATENT): neurons,
        (4, Channel.STATISTICS): files,
    }


@pytest.fixture(scope="module")
def screening(planted):
    return screen(planted[0], draws=8)


def keys(scores):
    return [(score.label, score.channel) for score in scores]


def contents(screening):
    return [
        (*key, s.p_value, s.q_value, *s.cluster)
        for key, s in zip(keys(screening.scores), screening.scores, strict=True)
    ]


def test_planted_clusters_come_first_and_are_found_whole(planted, screening):
    groups = planted[1]
    assert set(keys(screening.scores[:3])) == set(groups)
    for score in screening.scores[:3]:
        assert score.flagged
        assert np.array_equal(score.cluster, groups[score.label, score.channel])


def test_every_class_and_channel_has_a_score_in_order_of_suspicion(screening):
    within = [channel for channel in Channel if channel is not Channel.COMPARISON]
    assert sorted(keys(screening.scores)) == sorted((c, ch) for c in range(6) for ch in within)
    assert "Classes were not compared" in screening.notes[0]
    p_values = [score.p_value for score in screening.scores]
    assert p_values == sorted(p_values)
    assert all(0 < score.p_value <= score.q_value <= 1 for score in screening.scores)
    assert set(screening.ranking()[:3]) == {1, 3, 4}


def test_false_discoveries_are_controlled_over_classes_and_channels(screening):
    p_values = [score.p_value for score in screening.scores]
    expected = stats.false_discovery_control(p_values)
    assert [score.q_value for score in screening.scores] == pytest.approx(expected.tolist())
    assert all(score.flagged == (score.q_value <= 0.1) for score in screening.scores)


def test_clean_classes_are_not_flagged(clean):
    assert not screen(clean, draws=8).flagged()


def test_a_score_reports_the_class_own_graph(planted, screening):
    evidence = planted[0]
    score = next(s for s in screening.scores if (s.label, s.channel) == (2, Channel.LATENT))
    points = features(evidence, Channel.LATENT, evidence.of_class(2))
    found = spectrum(affinity(coordinates(points)))
    assert score.connectivity == pytest.approx(found.connectivity)
    assert score.eigengap == found.eigengap
    assert score.count == 40


def test_the_same_seed_gives_the_same_scores_in_any_number_of_processes(planted):
    evidence = planted[0]
    once = screen(evidence, draws=8, channels=MAPS)
    again = screen(evidence, draws=8, channels=MAPS, workers=2)
    assert contents(once) == contents(again)


def test_a_worker_keeps_to_one_core():
    with ProcessPoolExecutor(1, get_context("spawn"), with_one_thread) as pool:
        libraries = pool.submit(threadpool_info).result(timeout=120)
    assert libraries
    assert {library["num_threads"] for library in libraries} == {1}


def test_a_class_is_measured_alike_alone_and_among_others(clean):
    alone = np.flatnonzero(clean.labels == 5)
    part = replace(
        clean,
        samples=tuple(clean.samples[i] for i in alone),
        originals=np.arange(len(alone)),
        **{
            name: getattr(clean, name)[alone]
            for name in ("labels", "predictions", "maps", "latent", "activations", "statistics")
        },
    )
    (single,) = screen(part, draws=8, channels=MAPS, per_class=30).scores
    among = screen(clean, draws=8, channels=MAPS, per_class=30).scores
    other = next(score for score in among if score.label == 5)
    assert single.connectivity == other.connectivity
    assert np.array_equal(alone[single.cluster], other.cluster)


def test_classes_are_brought_to_equal_numbers():
    evidence = clean_evidence(per_class=(26, 30, 60, 45))
    counts = {s.label: s.count for s in screen(evidence, draws=8, channels=MAPS).scores}
    assert counts == dict.fromkeys(range(4), 26)
    fewer = screen(evidence, draws=8, channels=MAPS, per_class=40)
    assert {s.label: s.count for s in fewer.scores} == {0: 26, 1: 30, 2: 40, 3: 40}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 50, 60], 50),
        ([25] + [80] * 9, 80),
        ([25, 25] + [80] * 8, 25),
        ([1300] * 9, 400),
        ([3], 20),
    ],
)
def test_the_equal_number_is_had_by_nine_of_ten_classes(counts, expected):
    assert equal_count(counts) == expected


def test_copies_are_merged_before_anything_is_counted(clean):
    originals = clean.originals.copy()
    originals[1:21] = 0  # of the 40 samples of class 0, 20 are left
    found = screen(replace(clean, originals=originals), draws=8, channels=MAPS)
    assert {score.count for score in found.scores} == {20}
    assert not {1, 2, 3} & {int(i) for score in found.scores for i in score.cluster}


def test_classes_with_too_few_images_are_listed_once():
    found = screen(clean_evidence(per_class=(3, 30, 12)), draws=8)
    assert {score.label for score in found.scores} == {1}
    assert [(p.sample, p.kind, p.detail) for p in found.problems] == [
        ("class 0", "not enough images", "3, needs 20"),
        ("class 2", "not enough images", "12, needs 20"),
    ]


def test_a_channel_without_differences_is_a_problem_and_no_finding(clean):
    nothing = replace(
        clean,
        maps=np.zeros_like(clean.maps),
        latent=np.repeat(clean.latent[:1], len(clean), axis=0),
        statistics=np.full_like(clean.statistics, np.nan),
    )
    found = screen(nothing, draws=8)
    assert not found.scores
    kinds = [problem.kind for problem in found.problems]
    assert (kinds.count("nothing to compare"), kinds.count("left out")) == (18, 6)
    assert "all 40 samples are alike in relevance" in {p.detail for p in found.problems}


def test_samples_that_are_not_finite_are_left_out_of_their_channel(clean):
    maps = clean.maps.copy()
    maps[:5] = np.nan
    maps[40:65] = np.inf
    found = screen(replace(clean, maps=maps), draws=8, channels=MAPS)
    assert {score.label for score in found.scores} == {0, 2, 3, 4, 5}
    assert [(p.sample, p.detail) for p in found.problems] == [
        ("class 0", "5 of 40 samples have no finite relevance"),
        ("class 1", "25 of 40 samples have no finite relevance"),
        ("class 1", "15, needs 20"),
    ]
    assert all(not set(score.cluster) & set(range(5)) for score in found.scores)


def test_some_samples_without_any_relevance_do_no_harm(clean):
    maps = clean.maps.copy()
    maps[:10] = 0
    found = screen(replace(clean, maps=maps), draws=8, channels=MAPS)
    first = found.scores[0]
    assert first.label == 0  # they are a group, and a real one
    assert np.array_equal(first.cluster, np.arange(10))


def test_one_class_alone_is_judged_by_what_is_known_of_classes():
    clean = clean_evidence(1, 40)
    assert not screen(clean, draws=8, channels=MAPS).flagged()
    marked, own = with_corner_mark(clean, 0, 0.3)
    (score,) = screen(marked, draws=20, channels=MAPS).scores
    assert score.flagged
    assert np.array_equal(score.cluster, own)


def test_progress_is_told_for_every_measurement(clean):
    told = []
    screen(clean, draws=8, channels=MAPS, progress=lambda *step: told.append(step))
    assert told == [(i + 1, 6, f"class {i}") for i in range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"rate": 1.0}, "rate is 1.0"),
        ({"draws": 7}, "draws is 7; give 8 or more"),
        ({"per_class": 19}, "per_class is 19; give 20 or more, or None"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"channels": []}, "give one or more of relevance, latent, statistics"),
        ({"channels": ["pixels"]}, r"channels are \['pixels'\]"),
    ],
)
def test_arguments_out_of_range_are_refused(clean, options, message):
    with pytest.raises(InputError, match=message):
        screen(clean, **options)
