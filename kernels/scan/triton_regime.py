"""Which Triton program takes a scan, and in what pieces.

Many rows fill a GPU with one program a block of channels, which walks the sequence step by step.
Few rows do not: there the sequence is cut into chunks that run side by side, at the price of
computing every step twice. A single state a channel leaves so little to compute that chunks, whose
loads are wide, are better for any number of rows. The numbers were chosen by measuring on an H200.
"""

from dataclasses import dataclass

__all__ = ["Regime", "regime_of"]

# Channels of all rows and directions times states, up to which a GPU stands mostly idle step by
# step: three images of Vim-small.
_FEW = 3 * 2 * 768 * 16
# The same up to which programs that go step by step are made smaller: a thread holds 8 values
# instead of 32.
_SEVERAL = 16 * 2 * 768 * 16
# The same in float32, whose loads take more registers, up to which loads are issued further ahead.
_WIDE_SEVERAL, _WIDE_MANY = 2 * _SEVERAL, 4 * _SEVERAL
# Channels of a single state below which programs are made smaller, to have more of them.
_FEW_SCALAR = 16 * 256


@dataclass(frozen=True)
class Regime:
    """How a scan is launched.

    Attributes:
        kernel: "sequential", "chunked" or "scalar".
        block_n: States of a program, a power of 2.
        block_d: Channels of a program, a power of 2.
        chunks: Chunks that run side by side.
        steps: Steps of a chunk, or how many steps ahead loads are issued.
        warps: Of a program.
        registers: Most registers of a thread, where fewer than the compiler would take let more
            programs run side by side.
    """

    kernel: str
    block_n: int
    block_d: int
    chunks: int
    steps: int
    warps: int
    registers: int | None = None

    def sizes(self, per_group: int) -> dict[str, int]:
        """Constants of the kernel that say how the channels of a group are cut."""
        return {
            "PER_GROUP": -(-per_group // self.block_d),
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
        }


def regime_of(channels: int, length: int, states: int, per_group: int, size: int) -> Regime:
    """Choose by the shape of a call.

    Args:
        channels: Channels of all rows and directions.
        length: Steps of the sequence.
        states: Of a channel.
        per_group: Channels that share B and C.
        size: Bytes of a value.
    """
    if states == 1:
        return _scalar(channels, length, per_group)
    if channels * states <= _FEW:
        return _chunked(length, states, per_group)
    return _sequential(channels * states, power_of_2(states), per_group, size)


def _sequential(work: int, block_n: int, per_group: int, size: int) -> Regime:
    values, ahead, registers = 32, 2, None
    if work <= _SEVERAL:
        values = 8
    elif size < 4:
        registers = 112
    elif work <= _WIDE_MANY:
        values, ahead = (16 if work <= _WIDE_SEVERAL else 32), 4
    block_d = min(power_of_2(per_group), max(4, min(2 * values, 32 * values // block_n)))
    return Regime("sequential", block_n, block_d, 1, ahead, 1, registers)


def _chunked(length: int, states: int, per_group: int) -> Regime:
    block_n = power_of_2(states)
    block_d = min(power_of_2(per_group), 2)
    chunks = max(2, min(32, 512 // block_n, power_of_2(length)))
    steps = min(8, -(-length // chunks))
    return Regime("chunked", block_n, block_d, chunks, steps, max(1, chunks * block_d // 32))


def _scalar(channels: int, length: int, per_group: int) -> Regime:
    if channels < _FEW_SCALAR:
        block_d, most, steps = 8, 128, 8
    elif length <= 256:
        block_d, most, steps = 16, 16, 7
    else:
        block_d, most, steps = 32, 32, 8
    block_d = min(power_of_2(per_group), block_d)
    chunks = max(2, min(most, power_of_2(-(-length // steps))))
    steps = min(steps, -(-length // chunks))
    return Regime("scalar", 1, block_d, chunks, steps, max(1, min(8, chunks * block_d // 128)))


def power_of_2(x: int) -> int:
    """The smallest power of 2 that is at least x."""
    return 1 << max(x - 1, 0).bit_length()
