"""Plans: what is planted where, and that over seeds every cell has its turn."""

from collections import Counter

import pytest

from vimlrp.audit.planted.artifacts import ARTIFACTS
from vimlrp.audit.planted.plans import PREVALENCES, Kind, Plan, Planting, plan_for
from vimlrp.errors import InputError


def test_a_seed_plants_seven_artifacts_and_keeps_controls():
    for seed in range(8):
        plan = plan_for(seed)
        kinds = Counter(plan.kind_of(label) for label in range(plan.classes))
        unlearnt = seed % 2
        assert kinds == {
            Kind.PLANTED: 7,
            Kind.TWO_POSES: 1,
            Kind.CLEAN: 12 - unlearnt,
            **({Kind.UNLEARNT: 1} if unlearnt else {}),
        }
        assert (plan.inert is None) == bool(unlearnt)
        used = [planting.artifact for planting in plan.plantings]
        assert sorted([*used, *([plan.inert] if plan.inert else [])]) == sorted(ARTIFACTS)


def test_five_seeds_cover_every_artifact_at_every_strong_prevalence():
    cells = Counter(
        (planting.artifact, planting.prevalence)
        for seed in range(5)
        for planting in plan_for(seed).plantings
        if planting.learnt
    )
    for artifact in ARTIFACTS:
        for prevalence in (0.5, 0.25, 0.1):
            assert cells[artifact, prevalence] >= 1
        assert 1 <= sum(cells[artifact, weak] for weak in (0.05, 0.02, 0.01)) <= 2
    assert {prevalence for _, prevalence in cells} == set(PREVALENCES)


def test_every_run_has_strong_and_weak_cues():
    for seed in range(5):
        shares = [planting.prevalence for planting in plan_for(seed).plantings]
        assert max(shares) >= 0.25
        assert sum(share >= 0.1 for share in shares) >= 4


def test_classes_change_from_seed_to_seed():
    assert plan_for(3) == plan_for(3)
    places = {tuple(planting.label for planting in plan_for(seed).plantings) for seed in (0, 8, 16)}
    assert len(places) == 3


def test_plantings_of_a_class():
    plan = Plan(3, 0, (Planting(1, "patch", 0.5),), two_poses=frozenset({2}))
    assert plan.planting_of(1) == Planting(1, "patch", 0.5)
    assert plan.planting_of(0) is None
    assert [plan.kind_of(label) for label in range(3)] == [
        *(Kind.CLEAN, Kind.PLANTED, Kind.TWO_POSES)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plantings": (Planting(3, "patch", 0.5),)}, "names class 3 of 3"),
        ({"plantings": (), "two_poses": frozenset({7})}, "names class 7 of 3"),
        ({"plantings": (Planting(1, "patch", 0.5), Planting(1, "text", 0.5))}, "two plantings"),
        (
            {"plantings": (Planting(1, "patch", 0.5),), "two_poses": frozenset({1})},
            "two plantings or poses",
        ),
        ({"plantings": (Planting(1, "patch", 0.5), Planting(2, "patch", 0.5))}, "planted twice"),
        ({"plantings": (Planting(1, "patch", 0.5),), "inert": "patch"}, "planted twice"),
        ({"plantings": (), "inert": "scratch"}, "no artifact 'scratch'"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Plan(3, 0, **options)


@pytest.mark.parametrize("prevalence", [0.0, -0.1, 1.5])
def test_impossible_prevalences_are_refused(prevalence):
    with pytest.raises(InputError, match="give a share above 0"):
        Planting(0, "patch", prevalence)


def test_unknown_artifacts_are_refused():
    with pytest.raises(InputError, match="no artifact 'scratch'"):
        Planting(0, "scratch", 0.5)


@pytest.mark.parametrize(("seed", "classes"), [(0, 9), (-1, 20)])
def test_too_few_classes_are_refused(seed, classes):
    with pytest.raises(InputError, match="at least 10 classes"):
        plan_for(seed, classes)
