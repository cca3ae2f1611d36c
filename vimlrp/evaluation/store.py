"""What is measured so far, on disk: a part for each batch and method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimlrp.evaluation.parts import Part, Parts
from vimlrp.files import distinct_names

__all__ = ["Part", "Store"]


class Store:
    """The parts of an evaluation in a folder.

    Args:
        folder: Is made where it is missing.
        settings: All that results depend on, as JSON takes it.
        overwrite: Remove parts of other settings instead of refusing them.

    Raises:
        InputError: If the folder holds parts of other settings, or something else, or cannot be
            written to.
    """

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        # Parts with no method's name hold nothing that took long.
        self._parts = Parts(
            folder, settings, what="an evaluation", kept="*-*.npz", overwrite=overwrite
        )

    def __contains__(self, key: tuple[int, str]) -> bool:
        return _name(key) in self._parts

    def __getitem__(self, key: tuple[int, str]) -> Part:
        return self._parts[_name(key)]

    def __setitem__(self, key: tuple[int, str], part: Part) -> None:
        self._parts[_name(key)] = part


def _name(key: tuple[int, str]) -> str:
    batch, method = key
    return distinct_names([f"{batch:05d}-{method}" if method else f"{batch:05d}"])[0]
