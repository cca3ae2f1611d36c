"""Scan orders as data: which positions a direction visits, and in which sense.

An order is an index map and nothing else. A backend that reads memory by position follows it
without a flipped or transposed copy of its inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vimlrp.errors import KernelError

__all__ = ["ScanOrder", "visited"]


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """The order in which each direction of a selective scan visits the L positions.

    Build it once and keep it: the index is checked here, and copied to a device once.

    Attributes:
        reverse: One flag per direction; True walks the direction's positions backwards.
        index: Positions of each direction, one permutation of 0..L-1 a row, (K, L) int64;
            None for raster order, which fits any L.

    Raises:
        KernelError: If there is no direction, or a row of `index` is no permutation.

    Example:
        >>> ScanOrder.cross(2, 2).steps(4).tolist()
        [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [3, 1, 2, 0]]
    """

    reverse: tuple[bool, ...]
    index: Tensor | None = None
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reverse", tuple(bool(flag) for flag in self.reverse))
        if not self.reverse:
            raise KernelError(
                "A ScanOrder was given no direction; give one flag per direction in `reverse`, "
                "for example reverse=(False,) for one forward scan."
            )
        if self.index is not None:
            object.__setattr__(self, "index", _permutations(self.index, len(self.reverse)))

    @classmethod
    def forward(cls) -> "ScanOrder":
        """One direction, from the first position to the last."""
        return cls((False,))

    @classmethod
    def bidirectional(cls) -> "ScanOrder":
        """Two directions, forward then backward (Vim)."""
        return cls((False, True))

    @classmethod
    def cross(cls, height: int, width: int) -> "ScanOrder":
        """Four directions over a grid: row-major, column-major and both backwards (VMamba).

        Args:
            height: Rows of the grid, in tokens.
            width: Columns of the grid, in tokens.

        Returns:
            The order for L = height * width positions in row-major memory.

        Raises:
            KernelError: If a side is less than 1.
        """
        rows, columns = _grid("cross", height, width)
        order = torch.stack([rows.flatten(), columns.flatten()])
        return cls((False, False, True, True), order.repeat(2, 1))

    @classmethod
    def zigzag(cls, height: int, width: int) -> "ScanOrder":
        """Four directions that step to a neighbour every time (PlainMamba).

        Along the rows, every second one from its far end; so along the columns; and both
        backwards. Yang et al., BMVC 2024, https://arxiv.org/abs/2403.17695, section 3.2.

        Args:
            height: Rows of the grid, in tokens.
            width: Columns of the grid, in tokens.

        Returns:
            The order for L = height * width positions in row-major memory.

        Raises:
            KernelError: If a side is less than 1.

        Example:
            >>> ScanOrder.zigzag(2, 3).steps(6)[0].tolist()
            [0, 1, 2, 5, 4, 3]
        """
        order = torch.stack([_snake(lines) for lines in _grid("zigzag", height, width)])
        return cls((False, False, True, True), order.repeat(2, 1))

    @classmethod
    def windows(cls, height: int, width: int, window: int) -> "ScanOrder":
        """Two directions that finish a square window before the next, and that backwards.

        Windows, and the positions within each, come row by row; those at the right and lower edge
        are cut off where the sides are no multiples (LocalMamba, which pads them instead). Huang
        et al. 2024, https://arxiv.org/abs/2403.09338, section 3.2.

        Args:
            height: Rows of the grid, in tokens.
            width: Columns of the grid, in tokens.
            window: Side of a window, in tokens.

        Returns:
            The order for L = height * width positions in row-major memory.

        Raises:
            KernelError: If a side is less than 1.

        Example:
            >>> ScanOrder.windows(2, 4, 2).steps(8)[0].tolist()
            [0, 1, 4, 5, 2, 3, 6, 7]
        """
        if window < 1:
            raise KernelError(
                f"ScanOrder.windows was given windows of {window} tokens; give at least 1."
            )
        rows, _ = _grid("windows", height, width)
        order = torch.cat(
            [cells.flatten() for band in rows.split(window) for cells in band.split(window, dim=1)]
        )
        return cls((False, True), order.repeat(2, 1))

    @classmethod
    def from_index(cls, index: Tensor, reverse: Sequence[bool] | None = None) -> "ScanOrder":
        """One direction per row of `index`.

        Args:
            index: Positions in the order of visit, (K, L), each row a permutation of 0..L-1.
            reverse: Flags of the directions to walk backwards; None walks all forwards.

        Returns:
            The order.

        Raises:
            KernelError: If a row is no permutation, or `reverse` has another length than K.
        """
        flags = (False,) * len(index) if reverse is None else tuple(reverse)
        return cls(flags, index)

    @property
    def directions(self) -> int:
        """The number of directions K."""
        return len(self.reverse)

    def index_on(self, device: torch.device) -> Tensor | None:
        """The index on a device, copied there on first use; None for raster order."""
        if self.index is None or self.index.device == device:
            return self.index
        if device not in self._copies:
            # Copied in inference mode, it could not be kept for a gradient later.
            with torch.inference_mode(False):
                self._copies[device] = self.index.to(device)
        return self._copies[device]

    def steps(self, length: int, device: torch.device | None = None) -> Tensor:
        """Position that each direction visits at each step, senses applied, (K, L) int64."""
        device = device or torch.device("cpu")
        return visited(self.index_on(device), self.reverse, length, device)


def visited(
    index: Tensor | None, reverse: Sequence[bool], length: int, device: torch.device
) -> Tensor:
    """Position that each direction visits at each step.

    Args:
        index: Positions per direction, (K, L) int64 on `device`, or None for raster order.
        reverse: One flag per direction.
        length: L.
        device: Where the answer lies.

    Returns:
        Positions with the senses applied, (K, L) int64.
    """
    raster = torch.arange(length, device=device)
    rows = raster.expand(len(reverse), length) if index is None else index
    return torch.stack([r.flip(0) if back else r for r, back in zip(rows, reverse, strict=True)])


def _grid(name: str, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Positions of a grid by its rows, (height, width), and by its columns, (width, height)."""
    if height < 1 or width < 1:
        raise KernelError(
            f"ScanOrder.{name} was given a grid of {height} x {width} tokens; "
            "both sides must be at least 1."
        )
    rows = torch.arange(height * width).view(height, width)
    return rows, rows.t().clone()


def _snake(lines: Tensor) -> Tensor:
    """Go through the lines of a grid one after the other, every second one from its end."""
    turned = [line.flip(0) if i % 2 else line for i, line in enumerate(lines)]
    return torch.cat(turned)


def _permutations(index: Tensor, directions: int) -> Tensor:
    if index.dim() != 2 or index.shape[0] != directions or index.shape[1] < 1:
        raise KernelError(
            f"The index of a ScanOrder has shape {tuple(index.shape)}; with {directions} "
            f"direction(s) it must be ({directions}, L), L >= 1. Give one row per direction."
        )
    if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
        raise KernelError(
            f"The index of a ScanOrder has dtype {index.dtype}; it must hold integers. "
            "Convert it with index.long()."
        )
    # A copy, whatever becomes of the given tensor; made in inference mode, it could not be kept for
    # a gradient later.
    with torch.inference_mode(False):
        index = index.detach().to(torch.int64, copy=True).contiguous()
    expected = torch.arange(index.shape[1], device=index.device)
    for row, values in enumerate(index):
        if not torch.equal(values.sort().values, expected):
            raise KernelError(
                f"Row {row} of the index of a ScanOrder is no permutation of "
                f"0..{index.shape[1] - 1}; every position must stand in it exactly once."
            )
    return index
