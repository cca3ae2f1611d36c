"""Pictures as a batch for the model, read side by side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem, Sample
from vimlrp.evaluation.parts import Part
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Preprocessing

__all__ = ["Pictures", "read_pictures"]

_READERS = 8


@dataclass(frozen=True, eq=False)
class Pictures:
    """The readable ones of some samples.

    Args:
        rows: Their indices among all samples, (n,) int64.
        x: Prepared for the model, (n, 3, H, W); empty if there are none.
        problems: Of the others.
    """

    rows: NDArray[np.int64]
    x: Tensor
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def none(self) -> Part:
        """The part of a chunk of which no picture is left."""
        return Part({"row": np.zeros(0, np.int64)}, self.problems)

    def one(self, i: int) -> "Pictures":
        """A single picture of them.

        Args:
            i: Its place.
        """
        return Pictures(self.rows[i : i + 1], self.x[i : i + 1])


def read_pictures(
    samples: Sequence[Sample], rows: NDArray[np.int64], preprocessing: Preprocessing
) -> Pictures:
    """Read and prepare pictures.

    Args:
        samples: All samples.
        rows: Indices of those to read.
        preprocessing: Of the model.
    """

    def one(row: int) -> Tensor | Problem:
        sample = samples[row]
        try:
            x, _ = preprocessing(read_photo(sample.path))
        except InputError as error:
            return Problem(sample.name, "picture cannot be read", str(error))
        return x

    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(one, rows.tolist()))
    good = [i for i, x in enumerate(found) if isinstance(x, Tensor)]
    tensors = [x for x in found if isinstance(x, Tensor)]
    problems = tuple(x for x in found if isinstance(x, Problem))
    return Pictures(rows[good], torch.stack(tensors) if tensors else torch.empty(0), problems)
