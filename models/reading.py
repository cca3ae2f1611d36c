"""Weight files read without running what is in them.

Accepted are PyTorch files (zip or the older pickle) and safetensors, told apart by their first
bytes. PyTorch files are pickles, which can name any function to call; `torch.load` reads them with
`weights_only=True`, and beside tensors and plain containers only records of options may occur:
`argparse.Namespace` (official Vim checkpoints) and yacs's `CfgNode` (official VMamba checkpoints),
in whose place an ordinary dictionary comes, so that yacs need not be installed.
"""

import argparse
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vimlrp.errors import CheckpointError

__all__ = ["WeightFile", "Weights", "read_weights"]

Weights = Literal["auto", "model", "model_ema"]

_ENTRIES = {"model": ("model", "state_dict"), "model_ema": ("model_ema", "state_dict_ema")}
"""Names under which a training checkpoint keeps the weights and their moving average."""


class _Options:
    """Stands in for a class of options, of which an instance is filled like a dictionary."""

    def __new__(cls, *_: Any) -> "OrderedDict[str, Any]":  # type: ignore[misc]
        """Make the dictionary; the safe reader fills no subclass of one."""
        return OrderedDict()


_INERT: list[Any] = [argparse.Namespace, (_Options, "yacs.config.CfgNode")]
"""What a pickle may name beside tensors and plain containers."""

_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every key."""


@dataclass(frozen=True)
class WeightFile:
    """The tensors of a weight file.

    Args:
        path: The file.
        entry: The entry of the file that holds them, "" where the file is nothing else.
        tensors: By their names, without the prefixes of wrappers.
    """

    path: Path
    entry: str
    tensors: dict[str, Tensor]


def read_weights(path: str | os.PathLike[str], weights: Weights = "auto") -> WeightFile:
    """Read the weights of a file onto the CPU.

    Args:
        path: A training checkpoint, a state_dict or a safetensors file.
        weights: "model" for the trained weights, "model_ema" for their moving average, "auto" for
            the trained ones.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe or holds no such weights.
    """
    if weights not in get_args(Weights):
        raise CheckpointError(f"weights={weights!r}; give one of {', '.join(get_args(Weights))}")
    file = Path(path).expanduser()
    start = _start_of(file)
    content = _read_safetensors(file) if _is_safetensors(start) else _read_torch(file, start)
    entry, state = _choose(file, content, weights)
    return WeightFile(file, entry, _tensors_of(file, _without_prefixes(state)))


def _start_of(path: Path) -> bytes:
    """The first bytes of a file that can hold weights at all."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the weight file inside it")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    _check_start(path, start)
    return start


def _check_start(path: Path, start: bytes) -> None:
    text = start.lstrip().lower()
    if not start:
        raise CheckpointError(f"{path} is empty; download it again")
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, a small text that stands for the weights: fetch the "
            "real file with `git lfs pull`, or download it from the repository's web page"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not weights: the download link led to a page; download the "
            "file itself (on Hugging Face: 'resolve' in place of 'blob' in the address)"
        )
    if not (_is_safetensors(start) or _is_zip(start) or _is_pickle(start)):
        raise CheckpointError(
            f"{path} is neither a PyTorch file nor safetensors (it begins with {start[:8]!r}); "
            "give a .pth, .pt or .safetensors file, unpacked if it is an archive"
        )


def _is_zip(start: bytes) -> bool:
    return start.startswith(b"PK\x03\x04")


def _is_pickle(start: bytes) -> bool:
    return start.startswith(b"\x80") and start[1:2] <= b"\x05"


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and not _is_zip(start)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path, start: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(_INERT):
            # Mapped, so that the optimizer's moments, most of a training checkpoint, stay unread.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(start))
    except pickle.UnpicklingError as error:
        wanted = _foreign_globals(path, error)
        if not wanted:
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path} was not loaded and nothing in it was executed: it wants to use "
            f"{', '.join(wanted)}, and only tensors, plain containers, argparse.Namespace and "
            "yacs.config.CfgNode are accepted; if you trust its author, load it where that code "
            "lives and save model.state_dict() alone"
        ) from None
    except Exception as error:
        # Damaged bytes reach the unpickler as anything: EOFError, KeyError, struct.error, ...
        raise _damaged(path, error) from error


def _foreign_globals(path: Path, error: Exception) -> list[str]:
    """The functions and classes beyond the accepted ones that a refused pickle names."""
    try:
        with torch.serialization.safe_globals(_INERT):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        # Older pickles are no zip files, and only the first name that was refused is known.
        return re.findall(r"GLOBAL (\S+) was not an allowed", str(error))


def _damaged(path: Path, error: Exception) -> CheckpointError:
    size = path.stat().st_size
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return CheckpointError(
        f"{path} is damaged or cut short ({size:,} bytes; {reason}); compare its size with the "
        "original's and download it again"
    )


def _choose(path: Path, content: Any, weights: Weights) -> tuple[str, Mapping[str, Any]]:
    """The entry asked for, and what it holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; give a state_dict or a training checkpoint"
        )
    wanted = "model" if weights == "auto" else weights
    for entry in _ENTRIES[wanted]:
        if isinstance(content.get(entry), Mapping):
            return entry, content[entry]
    if wanted == "model" and any(isinstance(value, Tensor) for value in content.values()):
        return "", content
    raise CheckpointError(
        f"{path} has no {' or '.join(_ENTRIES[wanted])} with weights; it holds {_names(content)}"
        + ("; load it with weights='model'" if wanted == "model_ema" else "")
    )


def _names(content: Mapping[Any, Any], most: int = 8) -> str:
    names = [str(key) for key in content]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def _without_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    keys = [str(key) for key in state]
    for prefix in _PREFIXES * 2:  # wrapped in either order
        if all(key.startswith(prefix) for key in keys):
            keys = [key.removeprefix(prefix) for key in keys]
    return dict(zip(keys, state.values(), strict=True))


def _tensors_of(path: Path, state: dict[str, Any]) -> dict[str, Tensor]:
    others = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    if others:
        kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in others.items())
        raise CheckpointError(
            f"{path} has entries among its weights that are no tensors: {kinds}; save "
            "model.state_dict() alone"
        )
    if not state:
        raise CheckpointError(f"{path} holds no weights; save model.state_dict() into it")
    return state
