import numpy as np
import pytest
import torch
from helpers import random

from vimlrp.audit.gathering.maps import area_sums, shares


def by_hand(x, side):
    """Every pixel cut into side x side equal pieces a side, which each lie in one cell."""
    height, width = x.shape
    fine = np.kron(x.numpy(), np.full((side, side), 1 / side**2))
    return fine.reshape(side, height, side, width).sum((1, 3))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 48), (33, 20), (7, 50), (1, 1)])
def test_cells_get_the_area_of_each_pixel(height, width):
    x = random(2, height, width)
    found = area_sums(x)
    assert found.shape == (2, 16, 16)
    for i in range(2):
        np.testing.assert_allclose(found[i], by_hand(x[i], 16), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.sum((1, 2)), x.sum((1, 2)))


def test_shares_keep_signs_and_leave_zeros_and_what_is_no_number():
    x = torch.tensor([[1.0, -3.0], [0.0, 0.0], [float("nan"), 1.0]])
    found = shares(x)
    assert found[0].tolist() == [0.25, -0.75]
    assert found[1].tolist() == [0.0, 0.0]
    assert found[2].isnan().all()
