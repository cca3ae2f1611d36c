"""What is explained: a class, one class against another, or any linear function of the logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimlrp.errors import TargetError

__all__ = ["Indices", "Seed", "Target", "find_class", "indices", "seed"]


@dataclass(frozen=True)
class Indices:
    """Class indices, (B,) int64 on the model's device, of which it is known that they exist."""

    values: Tensor


Target = (
    int
    | str
    | Sequence[int | str]
    | NDArray[Any]
    | Tensor
    | Callable[[Tensor], Tensor]
    | Indices
    | None
)


@dataclass(frozen=True)
class Seed:
    """The values whose relevance is propagated.

    Args:
        value: Per sample, (B,), differentiable in the logits.
        target: Class indices, (B,) int64, or None for a callable.
        contrast: Indices of the classes subtracted, or None.
    """

    value: Tensor
    target: Tensor | None
    contrast: Tensor | None = None


def seed(logits: Tensor, target: Target, contrast: Target, names: Sequence[str] | None) -> Seed:
    """Turn a target into the value to explain.

    Args:
        logits: (B, C).
        target: None for the predicted class, an index, a name, one of either per sample, a (B,)
            tensor or array, or a callable from logits (B, C) to (B,) that is linear.
        contrast: A class to subtract, in any of these forms; None for none.
        names: The model's class names, where known.

    Raises:
        TargetError: If the model has no such class, or the callable is not linear.
    """
    value, index = _value(logits, target, names)
    if contrast is None:
        return Seed(value, index)
    other, other_index = _value(logits, contrast, names)
    return Seed(value - other, index, other_index)


def indices(
    target: Target, names: Sequence[str] | None, batch: int, classes: int, device: torch.device
) -> Tensor | None:
    """Turn a target that names classes into their indices.

    Args:
        target: As for `seed`, but no callable.
        names: The model's class names, where known.
        batch: Number of samples B.
        classes: Number of classes.
        device: Where the indices are wanted.

    Returns:
        (B,) int64, or None for the predicted classes.

    Raises:
        TargetError: If the model has no such class.
    """
    if target is None or isinstance(target, Indices):
        return None if target is None else target.values
    index = _as_tensor(target, names)
    if index.dim() == 0:
        index = index.expand(batch)
    if index.shape != (batch,):
        raise TargetError(f"{index.numel()} targets were given for {batch} samples; give one each")
    wrong = index[(index < 0) | (index >= classes)]
    if wrong.numel():
        raise TargetError(
            f"target {wrong[0]} is out of range: the model has classes 0 to {classes - 1}"
        )
    return index.to(device)


def find_class(name: str, names: Sequence[str] | None) -> int:
    """The index of a class by its name; case and synonyms after a comma are understood.

    Args:
        name: For example "church", or "English springer".
        names: All names, in order.

    Raises:
        TargetError: If no class, or more than one, is called so.
    """
    if names is None:
        raise TargetError(f"the class {name!r} was asked for by name, but the model knows no names")
    wanted = name.strip().casefold()
    lowered = [n.casefold() for n in names]
    found = [i for i, n in enumerate(lowered) if n == wanted]
    found = found or [i for i, n in enumerate(lowered) if wanted in map(str.strip, n.split(","))]
    if len(found) == 1:
        return found[0]
    if found:
        raise TargetError(f"{name!r} names the classes {found}: give the index of one of them")
    near = get_close_matches(wanted, lowered, n=3, cutoff=0.5)
    hint = ", ".join(repr(names[lowered.index(n)]) for n in near)
    raise TargetError(
        f"the model has no class {name!r}" + (f"; did you mean {hint}?" if hint else "")
    )


def _value(
    logits: Tensor, target: Target, names: Sequence[str] | None
) -> tuple[Tensor, Tensor | None]:
    if callable(target) and not isinstance(target, Tensor):
        return _linear_value(logits, target), None
    batch, classes = logits.shape
    index = indices(target, names, batch, classes, logits.device)
    if index is None:
        index = logits.detach().argmax(dim=1)
    return logits.gather(1, index[:, None]).squeeze(1), index


def _as_tensor(target: Target, names: Sequence[str] | None) -> Tensor:
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise TargetError(f"a target tensor holds class indices, not {target.dtype}")
        return target.to(torch.int64)
    if isinstance(target, str):
        return torch.tensor(find_class(target, names))
    if isinstance(target, np.ndarray):
        target = target.tolist()
    if isinstance(target, Sequence):
        return torch.tensor([_single(t, names) for t in target], dtype=torch.int64)
    return torch.tensor(_single(target, names))


def _single(target: object, names: Sequence[str] | None) -> int:
    if isinstance(target, str):
        return find_class(target, names)
    if isinstance(target, bool) or not hasattr(target, "__index__"):
        raise TargetError(
            f"{target!r} is no target: give a class index, a class name, one of them per sample, "
            "a (B,) tensor of indices, or a linear function of the logits"
        )
    return int(target.__index__())


def _linear_value(logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    value = function(logits)
    if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TargetError(
            f"the target function returned {shape} for {tuple(logits.shape)} logits; return (B,)"
        )
    _check_linear(logits.detach(), function)
    return value


def _check_linear(logits: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(20241)
    noise = torch.randn(logits.shape, generator=generator).to(logits)
    # A negative coefficient finds what is linear on one side only, and a sum other than 1 finds an
    # added constant.
    with torch.no_grad():
        left = function(-1.5 * logits + 0.7 * noise)
        right = -1.5 * function(logits) + 0.7 * function(noise)
    scale = right.abs().max() + logits.abs().max() + 1
    if (left - right).abs().max() > 100 * torch.finfo(logits.dtype).eps * scale:
        raise TargetError(
            "the target function is not linear in the logits, so relevance would not sum to its "
            "value; explain a logit or a difference of logits instead of, say, a probability"
        )
