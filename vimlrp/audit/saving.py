"""What the later stages of an audit found, as parts of its folder: arrays and JSON, no pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError
from vimlrp.evaluation.parts import Part

__all__ = ["pack", "unpack"]

Record = TypeVar("Record")
_Arrays = dict[str, NDArray[Any]]


def pack(record: Any, **facts: Any) -> Part:
    """A record as a part.

    Args:
        record: A dataclass of `vimlrp.audit.records`, or a list of one kind of them.
        **facts: What it was made with, as JSON takes it; they come back as the part's facts.
    """
    arrays: _Arrays = {}
    return Part(arrays, facts={**facts, "record": _plain(record, arrays)})


def unpack(part: Part, kind: type[Record]) -> Record:
    """The record that a part holds.

    Args:
        part: Of `pack`.
        kind: Its type, such as `Screening` or `list[Finding]`.

    Raises:
        InputError: If the part holds something else.
    """
    try:
        record: Record = _record(part.facts["record"], kind, part.arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"the part holds no {getattr(kind, '__name__', kind)} ({error!r}): it was written by "
            "another version, or is damaged; remove it and run the audit again"
        ) from error
    return record


def _plain(value: Any, arrays: _Arrays) -> Any:
    """A value as JSON takes it; its arrays are put aside and referred to by name."""
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return name
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), arrays) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    return [_plain(entry, arrays) for entry in value]


def _record(plain: Any, kind: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """The value of a type that `_plain` made JSON of."""
    origin, inner = _origin(kind), get_args(kind)
    if origin is np.ndarray:
        return arrays[plain]
    if origin in (Union, UnionType):
        kind = next(one for one in inner if one is not NoneType)
        return None if plain is None else _record(plain, kind, arrays)
    if origin is tuple and inner[-1] is not Ellipsis:
        return tuple(_record(p, k, arrays) for p, k in zip(plain, inner, strict=True))
    if origin is not None:
        entries = [_record(entry, inner[0], arrays) for entry in plain]
        return entries if origin is list else tuple(entries)
    if hasattr(kind, "__dataclass_fields__"):
        hints = _hints(kind)
        return kind(**{name: _record(plain[name], hint, arrays) for name, hint in hints.items()})
    return kind(plain)


def _origin(kind: Any) -> Any:
    """What a generic type is one of; from NumPy 2.5 on, `NDArray` is a name for another one."""
    origin = get_origin(kind)
    named = getattr(origin, "__value__", None)
    return origin if named is None else get_origin(named)


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)
