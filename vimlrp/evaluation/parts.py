"""What a long run has computed so far, on disk: parts, each written whole.

A run that was interrupted goes on from its parts. They belong to one set of settings: a folder that
holds parts of other settings is refused.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.files import atomic_write, remove_leftovers

__all__ = ["Part", "Parts", "joined"]

_SETTINGS = "settings.json"
_ABOUT = "about"


@dataclass(frozen=True)
class Part:
    """What one batch, or one step, gave.

    Args:
        arrays: By name, the rows of each being samples in most parts.
        problems: What could not be used or measured.
        facts: What else is known of the part, as JSON takes it, such as the seconds that it took.
        device: What it ran on, where that matters.
    """

    arrays: Mapping[str, NDArray[Any]]
    problems: Sequence[Problem] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""


def joined(parts: Sequence[Part]) -> Part:
    """Parts of some rows each as one, without their facts.

    Args:
        parts: At least one, with an array `row`. One without rows, of which nothing could be used,
            need not have the other arrays.
    """
    full = [part.arrays for part in parts if len(part.arrays["row"])] or [parts[0].arrays]
    arrays = {key: np.concatenate([rows[key] for rows in full]) for key in full[0]}
    return Part(arrays, [problem for part in parts for problem in part.problems])


class Parts:
    """The parts in a folder, by names that may hold a slash.

    Args:
        folder: Is made where it is missing.
        settings: All that results depend on, as JSON takes it; None for those that the folder has.
        what: What the run is called, with its article: "an evaluation".
        own: Pattern of the parts, whatever else their folder holds.
        kept: Pattern of the parts that are too dear to give way to other settings unasked.
        clear: Removes, from the folder, what was made of parts that give way.
        overwrite: Remove parts of other settings instead of refusing them.

    Raises:
        InputError: If the folder holds parts of other settings, or something else, or nothing where
            `settings` is None, or cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Mapping[str, Any] | None,
        *,
        what: str,
        own: str = "**/*.npz",
        kept: str = "**/*.npz",
        clear: Callable[[Path], None] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.folder, self.what = Path(folder), what
        self._own, self._kept, self._clear = own, kept, clear
        known = self.folder / _SETTINGS
        if settings is None:
            self.settings = self._read(known)
            return
        # What JSON changes, such as tuples, is no difference.
        self.settings = json.loads(json.dumps(settings))
        try:
            self._claim(known, overwrite)
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot hold {what} ({error}): give a folder that can be written to"
            ) from error

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def __getitem__(self, name: str) -> Part:
        path = self._path(name)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name != _ABOUT}
                about = json.loads(str(file[_ABOUT]))
            problems = [Problem(**problem) for problem in about["problems"]]
            facts, device = about["facts"], about.get("device", "")
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({error}): remove it and run the {self._noun} again"
            ) from error
        return Part(arrays, problems, facts, device)

    def __setitem__(self, name: str, part: Part) -> None:
        problems = [asdict(problem) for problem in part.problems]
        about = json.dumps({"problems": problems, "facts": dict(part.facts), "device": part.device})
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {**part.arrays, _ABOUT: np.array(about)}
        np.savez_compressed(buffer, **arrays)
        self.write(self._path(name), buffer.getvalue())

    def write(self, path: Path, data: bytes) -> None:
        """Write a file whole.

        Args:
            path: In the folder.
            data: What it shall hold.

        Raises:
            InputError: If it cannot be written, for example onto a full disk.
        """
        try:
            atomic_write(path, data)
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error}): make room, or the folder writable; what is "
                f"computed stays, and the {self._noun} goes on from it when it is run again"
            ) from error

    def remove(self, name: str) -> None:
        """Remove a part where it exists.

        Args:
            name: Of the part.
        """
        self._path(name).unlink(missing_ok=True)

    @property
    def _noun(self) -> str:
        return self.what.split(maxsplit=1)[1]

    def _path(self, name: str) -> Path:
        return self.folder / "parts" / f"{name}.npz"

    def _read(self, known: Path) -> dict[str, Any]:
        try:
            settings: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder} holds no {self._noun} ({error}): give the "
                "folder that one was written to"
            ) from error
        return settings

    def _claim(self, known: Path, overwrite: bool) -> None:
        text = json.dumps(self.settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if self.folder.is_dir():
            remove_leftovers(self.folder)
        if known.is_file() and known.read_text(encoding="utf-8") != text:
            self._give_way(known, overwrite)
        elif not known.is_file() and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} holds files and no {self._noun}: give another folder, or empty it"
            )
        atomic_write(known, text.encode())

    def _give_way(self, known: Path, overwrite: bool) -> None:
        if not overwrite and any(self.folder.glob(f"parts/{self._kept}")):
            raise InputError(
                f"{self.folder} holds {self.what} with other settings "
                f"({_difference(known, self.settings)}): give another folder, or overwrite it"
            )
        # Before the new settings are written, so that these never stand beside others' results.
        if self._clear is not None:
            self._clear(self.folder)
        for part in self.folder.glob(f"parts/{self._own}"):
            part.unlink()


def _difference(known: Path, settings: Mapping[str, Any]) -> str:
    """Names of the settings that differ."""
    try:
        old = json.loads(known.read_text(encoding="utf-8"))
    except ValueError:
        return "its settings cannot be read"
    keys = sorted({*old, *settings})
    return ", ".join(key for key in keys if old.get(key) != settings.get(key)) or "their order"
