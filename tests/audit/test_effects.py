"""Effects and verdicts, against numbers made by hand."""

import math

import numpy as np
import pytest
import torch
from same_records import same

from vimlrp.audit.records import Effect, Verdict
from vimlrp.audit.verifying.effects import Pairs, attack_rate, effect_of, probability_change
from vimlrp.audit.verifying.verdicts import FEWEST, action_for, decide
from vimlrp.errors import InputError


def test_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3, 2, 400)
    effect = effect_of("insertion", values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert effect.mean == pytest.approx(values.mean())
    assert (effect.low, effect.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.03
    )
    assert effect.count == 400


def test_pairs_of_one_picture_count_once():
    # Four carriers, pasted a hundred times each: the interval must be that of four values.
    values, groups = np.repeat([0.0, 1.0, 2.0, 3.0], 100), np.repeat(np.arange(4), 100)
    effect = effect_of("insertion", values, groups=groups)
    same(effect, effect_of("insertion", np.arange(4.0)))
    assert effect.count == 4


def test_values_that_are_not_finite_are_left_out():
    assert effect_of("removal", np.array([1.0, np.nan, 3.0])).mean == 2
    empty = effect_of("removal", np.array([np.nan]))
    assert empty.count == 0
    assert math.isnan(empty.mean)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="differences have shape"):
        effect_of("removal", np.zeros(3), groups=np.zeros(2, int))


def test_attack_rate_counts_pictures_that_turned():
    before = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]).double()
    after = torch.tensor([[2.0, 1.0], [3.0, 1.0], [0.0, 1.0], [0.5, 1.0]]).double()
    pairs = Pairs(before, after)
    assert attack_rate(pairs, 0) == pytest.approx(1 / 3)  # the first was of the class before
    assert math.isnan(attack_rate(Pairs(before[:1], after[:1]), 0))
    assert pairs.differences(0).tolist() == [0, 3, 0, 0.5]
    expected = (
        after.exp()[:, 0] / after.exp().sum(1) - before.exp()[:, 0] / before.exp().sum(1)
    ).mean()
    assert probability_change(pairs, 0) == pytest.approx(float(expected))


def effect(kind, low, high, count=20):
    return Effect(kind, (low + high) / 2, low, high, count)


TABLE = {
    "both proven": ((-3, -1), (1, 3), True, Verdict.CAUSAL),
    "only removal": ((-3, -1), (-1, 1), True, Verdict.ASSOCIATIVE),
    "only transplant": ((-1, 1), (1, 3), True, Verdict.ASSOCIATIVE),
    "both the wrong way": ((1, 3), (-3, -1), True, Verdict.ASSOCIATIVE),
    "wide around zero": ((-1, 1), (-1, 1), True, Verdict.ASSOCIATIVE),
    "within the margin": ((-0.1, 0.1), (-0.1, 0.1), True, Verdict.UNUSED),
    "whole pictures": ((1, 3), (1, 3), False, Verdict.NON_LOCAL),
    "whole pictures of all classes": ((1, 3), (-1, 1), False, Verdict.ASSOCIATIVE),
    "whole pictures without reaction": ((-0.1, 0.1), (-0.1, 0.1), False, Verdict.UNUSED),
}


@pytest.mark.parametrize("name", TABLE)
def test_verdicts(name):
    first, transplant, local, verdict = TABLE[name]
    effects = [
        effect("removal" if local else "insertion", *first),
        effect("transplant", *transplant),
    ]
    assert decide(effects, 1.0, local=local) is verdict


def test_too_few_pairs_prove_nothing():
    effects = [effect("removal", -3, -1, FEWEST - 1), effect("transplant", 1, 3)]
    assert decide(effects, 1.0, local=True) is Verdict.NOT_ENOUGH


@pytest.mark.parametrize("effects", [[], [effect("removal", -3, -1)]])
def test_half_a_proof_is_none(effects):
    assert decide(effects, 1.0, local=True) is Verdict.ASSOCIATIVE


@pytest.mark.parametrize("local", [True, False])
def test_a_trifle_proves_nothing_however_many_pictures_there_are(local):
    first = effect("removal", -0.16, -0.1) if local else effect("insertion", 0.1, 0.16)
    effects = [first, effect("transplant", 1, 3)]
    assert decide(effects, 1.0, local=local) is Verdict.ASSOCIATIVE
    # The same numbers count where the class's logit hardly varies.
    proven = Verdict.CAUSAL if local else Verdict.NON_LOCAL
    assert decide(effects, 0.5, local=local) is proven


@pytest.mark.parametrize(("undone", "proven"), [((-3, -1), True), ((1, 3), False)])
def test_a_change_of_whole_pictures_has_to_work_both_ways(undone, proven):
    effects = [effect("insertion", 1, 3), effect("transplant", 1, 3), effect("removal", *undone)]
    verdict = decide(effects, 1.0, local=False)
    assert verdict is (Verdict.NON_LOCAL if proven else Verdict.ASSOCIATIVE)


def test_every_verdict_says_what_to_do():
    texts = {action_for(verdict, clever_hans=False) for verdict in Verdict}
    texts.add(action_for(Verdict.CAUSAL, clever_hans=True))
    assert len(texts) == len(Verdict) + 1
