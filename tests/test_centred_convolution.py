"""The centred convolution against torch's, and its rules against explicit sums."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import random, relative_error, run_site, seeded
from test_rules import AFFINE_RULES, explicit

from vimlrp.sites import CentredConv1d

EXACT = 1e-12


def make(dim, width):
    with seeded():
        return CentredConv1d(dim, width).double()


def matrix_of(site, length):
    """The layer as a matrix on flattened (L, D), tap by tap."""
    dim, _, width = site.weight.shape
    matrix = torch.zeros(length, dim, length, dim, dtype=torch.float64)
    for t in range(length):
        for tap in range(width):
            source = t + tap - (width - 1) // 2
            if 0 <= source < length:
                for d in range(dim):
                    matrix[t, d, source, d] = site.weight[d, 0, tap].detach()
    return matrix.view(length * dim, length * dim)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_it_is_torchs_convolution_of_a_padded_sequence(width, length):
    site, x = make(4, width), random(2, 3, length, 4)
    padded = F.pad(x.flatten(0, 1).mT, ((width - 1) // 2, width // 2))
    theirs = F.conv1d(padded, site.weight, groups=4).mT
    torch.testing.assert_close(site(x), theirs.reshape(x.shape), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", AFFINE_RULES)
@pytest.mark.parametrize(("width", "length"), [(3, 6), (3, 1), (4, 5)])
def test_its_rules_are_explicit_relevance_sums(name, width, length):
    site, (rule, weigh) = make(3, width), AFFINE_RULES[name]
    x, gradient = random(2, length, 3, seed=1), random(2, length, 3, seed=2)
    x[:, 0, 0] = 0
    _, (at_input,), absorbed = run_site(site, rule, x, gradient=gradient)
    none = torch.zeros(length * 3, dtype=torch.float64)
    for row, at_output, given in zip(x, gradient, x * at_input, strict=True):
        expected, _ = explicit(
            matrix_of(site, length), none, row.flatten(), at_output.flatten(), weigh
        )
        assert relative_error(given.flatten(), expected) < EXACT
    assert set(absorbed) == ({"stabiliser"} if name == "epsilon" else set())


def test_it_says_its_size():
    assert "3, width=4" in repr(make(3, 4))
