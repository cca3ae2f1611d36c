"""What is measured so far, on disk: a part for each batch and method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimlrp.evaluation.outputs import remove_outputs
from vimlrp.evaluation.parts import Part, Parts
from vimlrp.files import distinct_names

__all__ = ["Part", "Store"]

_DIGITS = 5


class Store:
    """The parts of an evaluation in a folder.

    Args:
        folder: Is made where it is missing.
        settings: All that results depend on, as JSON takes it.
        overwrite: Remove parts and outputs of other settings instead of refusing them.

    Raises:
        InputError: If the folder holds parts of other settings, or something else, or cannot be
            written to.
    """

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> None:
        # Parts with no method's name hold nothing that took long.
        self._parts = Parts(
            folder,
            settings,
            what="an evaluation",
            own=f"{'[0-9]' * _DIGITS}*.npz",
            kept="*-*.npz",
            clear=remove_outputs,
            overwrite=overwrite,
        )

    def __contains__(self, key: tuple[int, str]) -> bool:
        return _name(key) in self._parts

    def __getitem__(self, key: tuple[int, str]) -> Part:
        return self._parts[_name(key)]

    def __setitem__(self, key: tuple[int, str], part: Part) -> None:
        self._parts[_name(key)] = part


def _name(key: tuple[int, str]) -> str:
    batch, method = key
    number = f"{batch:0{_DIGITS}d}"
    return distinct_names([f"{number}-{method}" if method else number])[0]
