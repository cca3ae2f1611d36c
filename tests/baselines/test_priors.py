"""Maps that no model had a part in."""

import torch
from helpers import images
from linear_models import LinearClassifier

from vimlrp.baselines import METHODS

MODEL, X, TARGET = LinearClassifier(), images(3, 8), torch.tensor([0, 1, 2])


def test_random_maps_differ_between_pictures_and_not_between_calls():
    maps = METHODS["random"](MODEL, X, TARGET)
    assert torch.equal(METHODS["random"](MODEL, X, TARGET), maps)
    assert torch.equal(METHODS["random"](MODEL, X[1:2], TARGET[1:2]), maps[1:2])
    assert all((maps[i] != maps[j]).all() for i in range(3) for j in range(i))
    other = METHODS["random"].function(MODEL, X, TARGET, seed=1)
    assert (other != maps).all()


def test_random_maps_are_normally_distributed_noise():
    maps = METHODS["random"](LinearClassifier(100), images(4, 100), torch.zeros(4).long())
    assert abs(float(maps.mean())) < 0.02
    assert abs(float(maps.std()) - 1) < 0.02
    neighbours = (maps[:, 1:] * maps[:, :-1]).mean()
    assert abs(float(neighbours)) < 0.02


def test_the_centre_prior_falls_off_from_the_middle_alike_on_all_sides():
    (first, *others) = METHODS["centre_prior"](MODEL, X, TARGET)
    assert all(torch.equal(other, first) for other in others)
    assert torch.equal(first, first.flip(0))
    assert torch.equal(first, first.t())
    assert first[3, 3] == first.max()
    assert (first[4:, 4].diff() < 0).all()
    # Two pixels and a half from the middle of eight, over a standard deviation of two.
    middle = torch.tensor([0.5 / 2, 2.5 / 2])
    assert abs(first[3, 6] - torch.exp(-0.5 * middle.square().sum())) < 1e-6
