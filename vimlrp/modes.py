"""Evaluation mode for the time of an explanation, and the user's mode again afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["evaluation_mode"]

_lock = Lock()
_held: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; the last explanation that ends puts its flags back.

    Args:
        model: Modules of it that train are switched over and back, one by one.
    """
    with _lock:
        count, trained = _held.get(model, (0, []))
        if count == 0:
            trained = [module for module in model.modules() if module.training]
            _set_training(trained, False)
        _held[model] = (count + 1, trained)
    try:
        yield
    finally:
        with _lock:
            count, trained = _held.pop(model)
            if count > 1:
                _held[model] = (count - 1, trained)
            else:
                _set_training(trained, True)


def _set_training(modules: list[nn.Module], flag: bool) -> None:
    # The attribute and not train(): that would also switch the children the user had frozen.
    for module in modules:
        module.training = flag
