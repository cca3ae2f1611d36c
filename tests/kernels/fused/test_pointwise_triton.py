"""The pointwise factors in Triton against float64."""

import pytest
import torch
from problems import DEVICE, FAST, error

from vimlrp.kernels.fused import pointwise

pytestmark = pytest.mark.skipif(
    "triton" not in FAST, reason="Triton runs in its interpreter or on a GPU"
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE["triton"])


@pytest.mark.parametrize("gamma", [0.0, 0.25, 7.0])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 1031)])
def test_shares_of_the_gamma_rule(poisoned, shape, gamma):
    from vimlrp.kernels.fused import pointwise_triton

    z = draw(*shape)
    z.flatten()[::3] = 0.0
    magnitude = z.abs() + draw(*shape, seed=1).abs()
    found = pointwise_triton.gamma_shares(z, magnitude, gamma)
    for own, wide in zip(
        found, pointwise.gamma_shares(z.double(), magnitude.double(), gamma), strict=True
    ):
        assert error(own, wide) < 1e-6
    assert poisoned()


def test_no_number_stays_none():
    from vimlrp.kernels.fused import pointwise_triton

    z = torch.tensor([1.0, torch.nan, -2.0], device=DEVICE["triton"])
    for factors in pointwise_triton.gamma_shares(z, z.abs() + 1, 0.25):
        assert factors.isnan().tolist() == [False, True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("layout", ["rows", "channels last", "scattered"])
def test_layouts_on_a_gpu(layout):
    z = draw(2, 8, 5, 6)
    magnitude = z.abs() + 1
    if layout == "channels last":
        z, magnitude = (x.to(memory_format=torch.channels_last) for x in (z, magnitude))
    if layout == "scattered":
        z, magnitude = (x.transpose(1, 2)[:, ::2] for x in (z, magnitude))
    wide = pointwise.gamma_shares(z.double(), magnitude.double(), 0.25)
    for own, expected in zip(pointwise.gamma_shares(z, magnitude, 0.25), wide, strict=True):
        assert own.shape == z.shape
        assert error(own, expected) < 1e-6
