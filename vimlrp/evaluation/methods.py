"""Attribution methods by name: every composite, and the baselines."""

import importlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vimlrp.composites import COMPOSITES, Composite
from vimlrp.errors import InputError
from vimlrp.explainer import CompositeLike, Explainer
from vimlrp.relevance import Relevance

__all__ = ["CompositeMethod", "Method", "explained_by", "method_named", "method_names"]

Method = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, preprocessed images (B, 3, H, W) on its device and classes (B,) int64 to signed
maps (B, H, W) in float32: positive where a pixel speaks for the class."""

_BASELINES = "vimlrp.baselines"


class CompositeMethod:
    """LRP under a composite, as a method.

    Args:
        composite: As for `vimlrp.Explainer`.

    Example:
        >>> method = CompositeMethod({"base": "mambalrp", "projection": "gamma(0.1)"})
    """

    def __init__(self, composite: CompositeLike = "mambalrp") -> None:
        self.composite = Composite.ensure(composite)
        self._last: Explainer | None = None

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Signed relevance of every pixel, (B, H, W) in float32; see `Method`."""
        return self.relevance(model, x, target).pixels.float()

    def relevance(self, model: nn.Module, x: Tensor, target: Tensor) -> Relevance:
        """The whole explanation, with its account.

        Args:
            model: As for `vimlrp.Explainer`.
            x: Preprocessed images, (B, 3, H, W).
            target: Classes, (B,).
        """
        if self._last is None or self._last.model is not model:
            self._last = Explainer(model, self.composite)
        return self._last(x, target=target)


def method_names() -> tuple[str, ...]:
    """The names that `method_named` takes."""
    return tuple(dict.fromkeys([*COMPOSITES, *_baselines()]))


def method_named(name: str) -> Method:
    """A method by its name.

    Args:
        name: Of a composite (`vimlrp.COMPOSITES`) or of a baseline (`vimlrp.baselines.METHODS`).

    Raises:
        InputError: If there is no such method.
    """
    if name in COMPOSITES:
        return CompositeMethod(name)
    baselines = _baselines()
    if name in baselines:
        return baselines[name]
    raise InputError(f"there is no method {name!r}; the methods are {', '.join(method_names())}")


def explained_by(method: Method, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Run a method and check what it returns.

    Args:
        method: See `Method`, as for the arguments that follow.
        model: A classifier.
        x: (B, 3, H, W).
        target: (B,).

    Returns:
        Maps (B, H, W) in float32, without gradients.

    Raises:
        InputError: If the method returns something else.
    """
    maps = method(model, x, target)
    wanted = (len(x), *x.shape[-2:])
    if not isinstance(maps, Tensor) or tuple(maps.shape) != wanted:
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"a method returned {given}; it must return a tensor of shape {wanted}")
    return maps.detach().to(x.device, torch.float32)


def _baselines() -> Mapping[str, Method]:
    try:
        module = importlib.import_module(_BASELINES)
    except ModuleNotFoundError as error:
        if error.name != _BASELINES:
            raise
        return {}
    found: Mapping[str, Method] = module.METHODS
    return found
