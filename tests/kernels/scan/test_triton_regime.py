"""The regimes of the Triton scan: every shape gets programs that fit it."""

import pytest

from vimlrp.kernels.scan.triton_regime import Regime, power_of_2, regime_of

SHAPES = [
    (rows * channels, length, states, channels)
    for rows in (1, 2, 64, 512)
    for channels in (1, 3, 96, 768)
    for length in (1, 5, 197, 3136)
    for states in (1, 2, 16, 256)
]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_powers_of_two_that_a_program_can_hold(
    shape: tuple[int, int, int, int], size: int
) -> None:
    _, length, states, channels = shape
    regime = regime_of(*shape, size)
    assert regime.block_n == power_of_2(states)
    assert regime.block_d & (regime.block_d - 1) == 0
    assert regime.block_d < 2 * channels
    assert regime.chunks & (regime.chunks - 1) == 0
    assert regime.warps in (1, 2, 4, 8)
    assert regime.block_n * regime.block_d * regime.chunks <= 64 * 32 * regime.warps
    if regime.kernel != "sequential":
        # At most one chunk's worth of steps more than the sequence has in its first tile.
        assert regime.chunks * (regime.steps - 1) < max(length, 2)


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2 * 768, 197, 16, 768), "chunked"),  # Vim-small, one image
        ((64 * 2 * 768, 197, 16, 768), "sequential"),
        ((4 * 96, 3136, 1, 96), "scalar"),  # VMamba, one image
        ((64 * 4 * 384, 196, 1, 384), "scalar"),
    ],
)
def test_the_regime_follows_the_number_of_rows(
    shape: tuple[int, int, int, int], kernel: str
) -> None:
    assert regime_of(*shape, 2).kernel == kernel


@pytest.mark.parametrize("per_group", [1, 31, 32, 33, 768])
def test_blocks_cover_a_group(per_group: int) -> None:
    sizes = Regime("sequential", 16, 32, 1, 1, 1).sizes(per_group)
    assert sizes["PER_GROUP"] * sizes["BLOCK_D"] >= per_group
    assert (sizes["PER_GROUP"] - 1) * sizes["BLOCK_D"] < per_group
