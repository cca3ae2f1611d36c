"""LRP under any composite as an attribution method."""

from weakref import ReferenceType, ref

from torch import Tensor, nn

from vimlrp.baselines.contract import Function, Models
from vimlrp.composites import Composite
from vimlrp.errors import UnsupportedModelError
from vimlrp.explainer import CompositeLike, Explainer
from vimlrp.relevance import Relevance
from vimlrp.sites import Site
from vimlrp.wrapping import wrap

__all__ = ["EXPLAINED", "CompositeMethod", "lrp"]


class CompositeMethod:
    """LRP under a composite, as a method that keeps its explainer, and with it CUDA graphs.

    It keeps that of one model. Others that are asked for in between, as shuffled copies are, each
    get one of their own for the moment, without graphs; a model that is asked for twice in a row
    takes the place.

    Args:
        composite: As for `vimlrp.Explainer`.

    Example:
        >>> method = CompositeMethod({"base": "mambalrp", "projection": "gamma(0.1)"})
    """

    def __init__(self, composite: CompositeLike = "mambalrp") -> None:
        self.composite = Composite.ensure(composite)
        self._kept: Explainer | None = None
        self._guest: ReferenceType[nn.Module] | None = None

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Signed relevance of every pixel, (B, H, W) in float32; see `Function`."""
        return self.relevance(model, x, target).pixels.float()

    def relevance(self, model: nn.Module, x: Tensor, target: Tensor) -> Relevance:
        """The whole explanation, with its account.

        Args:
            model: As for `vimlrp.Explainer`.
            x: Preprocessed images, (B, 3, H, W).
            target: Classes, (B,).
        """
        return self._explainer(model)(x, target=target)

    def _explainer(self, model: nn.Module) -> Explainer:
        guest, self._guest = self._guest, None
        if self._kept is not None and self._kept.model is model:
            return self._kept
        if self._kept is None or (guest is not None and guest() is model):
            self._kept = Explainer(model, self.composite)
            return self._kept
        self._guest = ref(model)
        return Explainer(model, self.composite, graphs=False)


def lrp(composite: CompositeLike) -> Function:
    """Make a function of a composite that keeps nothing, for a registry that lives for ever.

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
