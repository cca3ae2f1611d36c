import math

import pytest
import torch
from helpers import random
from scipy.stats import entropy as scipy_entropy

from vimlrp.evaluation.complexity import entropy, gini


def test_a_uniform_map_is_the_most_complex():
    maps = torch.cat([torch.ones(1, 4, 5), -torch.ones(1, 4, 5)])
    assert torch.allclose(entropy(maps), torch.tensor(math.log(20), dtype=torch.float64))
    assert torch.allclose(gini(maps), torch.zeros(2, dtype=torch.float64))


def test_one_pixel_is_the_least_complex():
    maps = torch.zeros(1, 4, 5)
    maps[0, 2, 3] = -7
    assert entropy(maps).item() == 0
    assert gini(maps).item() == pytest.approx(1 - 1 / 20)


def test_entropy_is_scipys_and_gini_that_of_all_pairs():
    maps = random(3, 6, 6)
    for row, found, index in zip(maps, entropy(maps), gini(maps), strict=True):
        size = row.abs().flatten()
        assert float(found) == pytest.approx(scipy_entropy(size.numpy()))
        pairs = (size[:, None] - size[None]).abs().mean() / (2 * size.mean())
        assert float(index) == pytest.approx(float(pairs))


def test_a_map_of_zeros_has_neither():
    assert entropy(torch.zeros(1, 3, 3)).isnan().all()
    assert gini(torch.zeros(1, 3, 3)).isnan().all()
