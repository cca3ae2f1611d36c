"""Write files and folders whole or not at all, and fingerprint what was written."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError

__all__ = ["atomic_folder", "atomic_write", "distinct_names", "remove_leftovers", "sha256_of"]


def atomic_write(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` in one step: a reader sees the old file or the new one, never a part.

    The bytes go to a temporary sibling first, which then replaces `path`. Missing folders above
    `path` are made. Where the write fails (a full disk, say), the old file stays as it was.

    Returns:
        The path written.

    Raises:
        InputError: `path` is a folder.
        OSError: The disk or its permissions refuse the write.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, where a file is to be written; give a file name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _sibling(path)
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


@contextmanager
def atomic_folder(
    path: str | Path, *, overwrite: bool = False, marker: str = "manifest.json"
) -> Iterator[Path]:
    """Fill a folder in one step: yields a temporary sibling that becomes `path` on success.

    If the block raises, the temporary folder is removed and what was at `path` is untouched.
    With `overwrite`, a folder that we wrote before is replaced as a whole (nothing of it stays);
    it is taken to be ours if it holds the file `marker` or is empty. Any other folder is refused,
    so that a slip in a path never deletes somebody's pictures. Between moving the old folder away
    and the new one in, `path` is missing for an instant.

    Example:
        >>> with atomic_folder("out", overwrite=True) as folder:
        ...     (folder / "manifest.json").write_text("{}")

    Args:
        path: The folder to make; missing folders above it are made too.
        overwrite: Replace a folder that we wrote before.
        marker: The file whose presence says that an existing folder is ours.

    Raises:
        InputError: `path` is a file, or a folder that may not be replaced. Raised before the
            block runs, so no work is lost.
    """
    path = Path(path).resolve()
    _check_replaceable(path, overwrite, marker)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _sibling(path)
    part.mkdir()
    try:
        yield part
        _move_in(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the unfinished files that a killed process left in a folder and below it.

    Only for a folder that no other process writes to.
    """
    for part in Path(folder).rglob(".vimlrp-*.part"):
        if part.is_file():
            part.unlink(missing_ok=True)


def sha256_of(source: str | Path | bytes | NDArray[np.generic]) -> str:
    """The SHA-256 of a file (given by its path), of bytes, or of an array's values.

    An array counts as its bytes in C order: its dtype and shape are not part of the hash.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: There is no such file, or `source` is something else.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, np.ndarray):
        return hashlib.sha256(source.tobytes()).hexdigest()
    if isinstance(source, str | Path):
        return _sha256_of_file(Path(source))
    raise InputError(f"Cannot hash a {type(source).__name__}; give a path, bytes or a numpy array.")


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names for files that are safe everywhere and differ, on disks that ignore case too.

    Args:
        names: Any text, one for each file.
    """
    taken: set[str] = set()
    distinct = []
    for name in names:
        safe = re.sub(r"[^\w.-]+", "_", name) or "image"
        chosen, number = safe, 1
        while chosen.casefold() in taken:
            number += 1
            chosen = f"{safe}_{number}"
        taken.add(chosen.casefold())
        distinct.append(chosen)
    return distinct


def _sha256_of_file(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"Cannot hash {path}: there is no such file.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sibling(path: Path) -> Path:
    # Made by hand, not by tempfile: its files and folders are private (0600, 0700), and ours would
    # keep that mode after the rename. The name leaves `path.name` out, which may already be as
    # long as the file system allows.
    return path.parent / f".vimlrp-{uuid.uuid4().hex}.part"


def _check_replaceable(path: Path, overwrite: bool, marker: str) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file, where a folder is to be written; give another path.")
    if not overwrite:
        raise InputError(f"{path} already exists; give another folder, or overwrite=True.")
    if any(path.iterdir()) and not (path / marker).is_file():
        raise InputError(
            f"{path} holds files but no {marker}, so it was not written by vimlrp and is not "
            "replaced even with overwrite=True; give another folder, or empty this one yourself."
        )


def _move_in(part: Path, path: Path) -> None:
    # A folder cannot be renamed onto one with files in it, so the old one steps aside, and comes
    # back if the new one cannot take its place.
    old = _sibling(path)
    with suppress(FileNotFoundError):
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        with suppress(FileNotFoundError):
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
