"""The files of an evaluation in its folder: which are its own, and so may be replaced."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from PIL import Image

__all__ = ["MANIFEST", "MARK", "PICTURES", "TABLES", "remove_outputs", "remove_pictures"]

TABLES = ("samples.csv", "curves.csv", "problems.csv", "table.md", "cost.md")
MANIFEST = "manifest.json"
PICTURES = "curves"
"""The folder of the pictures."""

MARK = {"Software": "vimlrp evaluate"}
"""Text in a picture by which it is known as an evaluation's, whatever its name."""


def remove_outputs(folder: Path) -> None:
    """Remove what an evaluation wrote into its folder, the manifest first; its parts stay.

    Args:
        folder: Of an evaluation.

    Raises:
        OSError: If a file cannot be removed.
    """
    for name in (MANIFEST, *TABLES):
        (folder / name).unlink(missing_ok=True)
    remove_pictures(folder)


def remove_pictures(folder: Path, but: Iterable[Path] = ()) -> None:
    """Remove the pictures that an evaluation drew, and no other.

    Args:
        folder: Of the evaluation.
        but: Those that stay.

    Raises:
        OSError: If a file cannot be removed.
    """
    kept = set(but)
    for file in (folder / PICTURES).glob("*.png"):
        if file not in kept and _is_marked(file):
            file.unlink()
    with suppress(OSError):  # it holds something else, or is not there
        (folder / PICTURES).rmdir()


def _is_marked(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return MARK.items() <= image.info.items()
    except (OSError, ValueError, SyntaxError):
        return False
