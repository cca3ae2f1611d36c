"""Cloning a model's tree of modules with sites in place of the layers that need rules.

A clone has modules of its own and the parameters and buffers of the original: the very
dictionaries are shared, so later training, `.to(...)` and a parameter assigned anew are seen. The
class of a cloned module is its own class with a counterpart mixed in before it, so that every
attribute and helper of the original is there, and only what needs rules is written anew.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any
from weakref import ref

from torch import nn

from vimlrp.errors import UnsupportedModelError

__all__ = ["Counterpart", "Table", "clone", "structure"]

Table = Mapping[str, type[nn.Module]]
"""Counterparts by the full name of the class that they stand for."""

_SHARED = ("_parameters", "_buffers", "_non_persistent_buffers_set")
_HOOKS = tuple(
    f"_forward_{name}"
    for name in (
        "hooks",
        "hooks_with_kwargs",
        "hooks_always_called",
        "pre_hooks",
        "pre_hooks_with_kwargs",
    )
)
_OWN = frozenset((*vars(nn.Module()), *_SHARED, *_HOOKS)) - {"training"}


class Counterpart(nn.Module):
    """What stands in for a module of a class that has parts without a rule; mixed in before it."""

    def settle(self) -> None:
        """Add the sites that the counterpart's forward needs, once its children are cloned."""


def clone(model: nn.Module, table: Table) -> tuple[nn.Module, dict[int, nn.Module]]:
    """Clone a model.

    Args:
        model: Any module; it is only read.
        table: The counterparts.

    Returns:
        The clone, and the clone of every module by the identity of the original.

    Raises:
        UnsupportedModelError: If the forward of a layer was patched, which would run without the
            layer's rule.
    """
    cloner = _Cloner(table)
    return cloner.module(model), cloner.clones


class _Cloner:
    def __init__(self, table: Table) -> None:
        self.clones: dict[int, nn.Module] = {}
        self._table = table

    def module(self, module: nn.Module) -> nn.Module:
        known = self.clones.get(id(module))
        if known is not None:
            return known
        counterpart = self._table.get(_name_of(type(module)))
        kind = type(module) if counterpart is None else _mixed(type(module), counterpart)
        new: nn.Module = kind.__new__(kind)
        nn.Module.__init__(new)
        self.clones[id(module)] = new
        self._fill(vars(new), vars(module))
        if isinstance(new, Counterpart):
            _check_unpatched(module)
            new.settle()
        return new

    def _fill(self, new: dict[str, Any], old: Mapping[str, Any]) -> None:
        new.update({key: old[key] for key in _SHARED})
        new.update({key: OrderedDict(old[key]) for key in _HOOKS})
        for name, child in old["_modules"].items():
            new["_modules"][name] = None if child is None else self.module(child)
        new.update({key: self._value(value) for key, value in old.items() if key not in _OWN})

    def _value(self, value: Any) -> Any:
        """An attribute's value for the clone: modules and bound methods become those of clones."""
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, self.module(value.__self__))
        if type(value) in (list, tuple, set):
            return type(value)(map(self._value, value))
        if type(value) is dict:
            return {key: self._value(entry) for key, entry in value.items()}
        return value


def _check_unpatched(module: nn.Module) -> None:
    if "forward" in vars(module):
        raise UnsupportedModelError(
            f"the forward of a {type(module).__name__} was patched, so its rule would not run: "
            "take the patch off, or put a module of its own in its place"
        )


def _name_of(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


_mixtures: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _mixed(kind: type[nn.Module], counterpart: type[nn.Module]) -> type[nn.Module]:
    """A class whose methods are those of the counterpart, and the original's where it has none."""
    if (kind, counterpart) not in _mixtures:
        name = f"Sited{kind.__name__}"
        mixture = type(name, (counterpart, kind), {"__module__": __name__})
        _mixtures[kind, counterpart] = mixture
    return _mixtures[kind, counterpart]


def structure(model: nn.Module) -> tuple[object, ...] | None:
    """What a clone depends on beside the values of tensors, to be compared with `==`.

    Args:
        model: Any module.

    Returns:
        The types, identities and plain attributes of all modules; None where hooks or functions of
        the user's hang on one, which a clone that is kept would keep alive.
    """
    parts: list[object] = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = vars(module)
        if any(own[key] for key in _HOOKS) or "forward" in own:
            return None
        parts.append((name, type(module), ref(module), tuple(_attributes(own))))
    return tuple(parts)


def _attributes(own: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in own.items():
        if key not in _OWN and key != "training":
            plain = isinstance(value, bool | int | float | str | tuple | None)
            yield key, repr(value) if plain else id(value)
