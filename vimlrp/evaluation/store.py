"""What is measured so far, on disk: a part for each batch and method, each written whole.

An evaluation that was interrupted goes on from its parts. They belong to one set of settings: a
folder that holds parts of other settings is refused.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.outputs import remove_outputs
from vimlrp.files import atomic_write, distinct_names

__all__ = ["Part", "Store"]

_SETTINGS = "settings.json"
_DIGITS = 5


@dataclass(frozen=True)
class Part:
    """What one batch gave.

    Args:
        arrays: Values, (n,), and curves, (n, S), of each sample.
        problems: What could not be used or measured.
        facts: Numbers about the part, such as the seconds that it took.
        device: What it ran on.
    """

    arrays: Mapping[str, NDArray[np.float64]]
    problems: Sequence[Problem] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    device: str = ""


class Store:
    """The parts in a folder.

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
        self.folder = Path(folder)
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        known = self.folder / _SETTINGS
        try:
            self._claim(known, settings, text, overwrite)
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot hold an evaluation ({error}): give a folder that can be "
                "written to"
            ) from error

    def _claim(self, known: Path, settings: Mapping[str, Any], text: str, overwrite: bool) -> None:
        if known.is_file() and known.read_text(encoding="utf-8") != text:
            self._give_way(known, settings, overwrite)
        elif not known.is_file() and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} holds files and no evaluation: give another folder, or empty it"
            )
        atomic_write(known, text.encode())

    def __contains__(self, key: tuple[int, str]) -> bool:
        return self._path(key).is_file()

    def __getitem__(self, key: tuple[int, str]) -> Part:
        path = self._path(key)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name != _ABOUT}
                about = json.loads(str(file[_ABOUT]))
            problems = [Problem(**problem) for problem in about["problems"]]
            facts, device = about["facts"], about.get("device", "")
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise InputError(
                f"{path} is damaged ({error}): remove it and run the evaluation again"
            ) from error
        return Part(arrays, problems, facts, device)

    def __setitem__(self, key: tuple[int, str], part: Part) -> None:
        problems = [asdict(problem) for problem in part.problems]
        about = json.dumps({"problems": problems, "facts": dict(part.facts), "device": part.device})
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {**part.arrays, _ABOUT: np.array(about)}
        np.savez_compressed(buffer, **arrays)
        atomic_write(self._path(key), buffer.getvalue())

    def _path(self, key: tuple[int, str]) -> Path:
        batch, method = key
        number = f"{batch:0{_DIGITS}d}"
        name = f"{number}-{method}" if method else number
        return self.folder / "parts" / f"{distinct_names([name])[0]}.npz"

    def _give_way(self, known: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        # Parts with no method's name hold nothing that took long.
        if not overwrite and any(self.folder.glob("parts/*-*.npz")):
            raise InputError(
                f"{self.folder} holds an evaluation with other settings "
                f"({_difference(known, settings)}): give another folder, or overwrite it"
            )
        # Before the new settings are written, so that these never stand beside others' results.
        remove_outputs(self.folder)
        for part in self.folder.glob(f"parts/{'[0-9]' * _DIGITS}*.npz"):
            part.unlink()


_ABOUT = "about"


def _difference(known: Path, settings: Mapping[str, Any]) -> str:
    """Names of the settings that differ."""
    try:
        old = json.loads(known.read_text(encoding="utf-8"))
    except ValueError:
        return "its settings cannot be read"
    keys = sorted({*old, *settings})
    # What JSON changes, such as tuples, is no difference.
    new = json.loads(json.dumps(settings))
    return ", ".join(key for key in keys if old.get(key) != new.get(key)) or "their order"
