"""Hashes by which an interrupted evaluation knows that it is still the same one."""

import hashlib
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn, uint8

from vimlrp.baselines.contract import Method as Registered
from vimlrp.errors import InputError
from vimlrp.evaluation.data import DataSet
from vimlrp.evaluation.methods import CompositeMethod, Method
from vimlrp.files import sha256_of

__all__ = ["data_hash", "method_hashes", "weights_hash"]

_READERS = 8


def weights_hash(model: nn.Module) -> str:
    """The SHA-256 of a model's parameters and buffers.

    Args:
        model: Any.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(uint8).numpy())
    return digest.hexdigest()


def data_hash(data: DataSet) -> str:
    """The SHA-256 of samples: what is known of them, and the content of their files.

    Where the files lie does not count, so that data may move.

    Args:
        data: The samples.
    """
    digest = hashlib.sha256()
    files = [path for sample in data.samples for path in (sample.path, *sample.masks)]
    with ThreadPoolExecutor(_READERS) as pool:
        contents = list(pool.map(_content, files))
    for sample in data.samples:
        known = asdict(sample) | {"path": "", "masks": len(sample.masks)}
        digest.update(repr(sorted(known.items())).encode())
    digest.update("".join(contents).encode())
    return digest.hexdigest()


def _content(path: Path) -> str:
    try:
        return sha256_of(path)
    except (InputError, OSError):
        return "unreadable"


def method_hashes(methods: Mapping[str, Method]) -> dict[str, str]:
    """A short hash of what each method is, by name.

    A composite is its rules, a function its module and name, a data class its name and settings.
    What has no such name, as a lambda or a partial function, gets a hash of its own each time, and
    so is never taken for another.

    Args:
        methods: By name.
    """
    return {
        name: sha256_of(f"{name}/{_identity(method)}".encode())[:8]
        for name, method in methods.items()
    }


def _identity(method: Any) -> str:
    if isinstance(method, CompositeMethod):
        return str(method.composite)
    function = method.function if isinstance(method, Registered) else method
    name = getattr(function, "__qualname__", "")
    if isinstance(method, Registered):
        name = f"{method.name} {name}"  # registered methods may share a maker of functions
    elif is_dataclass(method):
        return _with_settings(method)
    elif not name or "<lambda>" in name:
        return uuid.uuid4().hex
    return f"{getattr(function, '__module__', '')}.{name}"


def _with_settings(method: Any) -> str:
    kind, settings = type(method), (getattr(method, field.name) for field in fields(method))
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(map(_setting, settings))})"


def _setting(value: Any) -> str:
    if callable(value):
        return _identity(value)
    # What prints itself in full: a tensor, say, leaves out its middle.
    known = isinstance(value, (str, int, float, tuple, type(None)))
    return repr(value) if known else uuid.uuid4().hex
