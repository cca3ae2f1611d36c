"""Where the patches and the class tokens of a model stand in its sequence."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["CLASS_TOKEN_PLACES", "TokenLayout"]

CLASS_TOKEN_PLACES = ("middle", "head", "tail", "double", "none")


@dataclass(frozen=True)
class TokenLayout:
    """A patch grid with class tokens placed among its row-major sequence.

    Vim inserts its class token at index M // 2 of M patches (hustvl/Vim, `forward_features`):
    sequence index t < p is patch t, and t > p is patch t - 1.

    Args:
        grid: Rows and columns of patches.
        class_token: One of `CLASS_TOKEN_PLACES`; "double" has one token at each end.
    """

    grid: tuple[int, int]
    class_token: str = "none"  # noqa: S105

    @property
    def patch_count(self) -> int:
        """The number of patches M."""
        return self.grid[0] * self.grid[1]

    @property
    def length(self) -> int:
        """The length of the sequence, class tokens included."""
        return self.patch_count + len(self.special)

    @cached_property
    def special(self) -> tuple[int, ...]:
        """Sequence indices of the class tokens."""
        m = self.patch_count
        places = {"middle": (m // 2,), "head": (0,), "tail": (m,), "double": (0, m + 1), "none": ()}
        return places[self.class_token]

    def insert(self, patches: Tensor, special: Tensor) -> Tensor:
        """Put the class tokens where they belong.

        Args:
            patches: (B, M, D) in row-major order.
            special: (B, S, D), one for each entry of `special`.

        Returns:
            The sequence, (B, L, D).
        """
        pieces, start = [], 0
        for token, place in enumerate(self.special):
            stop = place - token
            pieces += [patches[:, start:stop], special[:, token : token + 1]]
            start = stop
        return torch.cat([*pieces, patches[:, start:]], dim=1)

    def patches_of(self, sequence: Tensor) -> Tensor:
        """Pick the patches out of a sequence in row-major order: (B, L, ...) to (B, M, ...)."""
        # Slices and no index tensor, whose copy to a GPU would wait for it and end a graph capture.
        edges = pairwise((-1, *self.special, self.length))
        return torch.cat([sequence[:, last + 1 : place] for last, place in edges], dim=1)

    def special_of(self, sequence: Tensor) -> Tensor:
        """Pick the class tokens out of a sequence: (B, L, ...) to (B, S, ...)."""
        if not self.special:
            return sequence[:, :0]
        return torch.cat([sequence[:, place : place + 1] for place in self.special], dim=1)
