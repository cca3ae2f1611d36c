"""By what an evaluation knows its methods again."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from vimlrp.evaluation import CompositeMethod
from vimlrp.evaluation.fingerprints import method_hashes


@dataclass(frozen=True)
class Blurred:
    inner: object
    sigma: object

    def __call__(self, model, x, target):
        return self.inner(model, x, target)


def plain(model, x, target):
    return x.sum(1)


def hash_of(method):
    return method_hashes({"m": method})["m"]


MADE = {
    "a composite": lambda: CompositeMethod({"base": "mambalrp", "head": "gamma(0.1)"}),
    "a function": lambda: plain,
    "a data class": lambda: Blurred(CompositeMethod(), 3.0),
    "a data class in another": lambda: Blurred(Blurred(plain, (1, 2)), None),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_method_is_known_again(kind):
    assert hash_of(MADE[kind]()) == hash_of(MADE[kind]())


OTHERS = {
    "another setting": Blurred(CompositeMethod(), 4.0),
    "another composite inside": Blurred(CompositeMethod("norm_rule_only"), 3.0),
    "another function inside": Blurred(plain, 3.0),
    "the composite alone": CompositeMethod(),
}


@pytest.mark.parametrize("other", OTHERS)
def test_no_method_is_taken_for_one_with(other):
    assert hash_of(OTHERS[other]) != hash_of(Blurred(CompositeMethod(), 3.0))


UNKNOWABLE = {
    "a lambda": lambda model, x, target: x.sum(1),
    "a partial function": partial(plain),
    "a data class around a lambda": Blurred(lambda model, x, target: x.sum(1), 1),
    "a data class with a tensor": Blurred(plain, torch.zeros(2000)),
}


@pytest.mark.parametrize("kind", UNKNOWABLE)
def test_what_cannot_be_known_is_never_taken_for_the_same(kind):
    assert hash_of(UNKNOWABLE[kind]) != hash_of(UNKNOWABLE[kind])
