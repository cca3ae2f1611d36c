"""LRP under any composite as a baseline."""

from torch import Tensor, nn

from vimlrp.baselines.contract import Function, Models
from vimlrp.errors import UnsupportedModelError
from vimlrp.explainer import CompositeLike, Explainer
from vimlrp.sites import Site
from vimlrp.wrapping import wrap

__all__ = ["EXPLAINED", "lrp"]


def lrp(composite: CompositeLike) -> Function:
    """Make a method of a composite.

    Args:
        composite: As for `vimlrp.Explainer`.

    Returns:
        A function that gives the relevance of the pixels as `vimlrp.explain` does.
    """

    def maps(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        # No graphs: they live as long as their explainer, which is gone after this batch.
        return Explainer(model, composite, graphs=False)(x, target=target).pixels

    return maps


def _is_explained(model: nn.Module) -> bool:
    try:
        return any(isinstance(module, Site) for module in wrap(model).modules())
    except UnsupportedModelError:
        return False


EXPLAINED = Models("the models that vimlrp.explain takes", _is_explained)
