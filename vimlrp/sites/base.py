"""The base of all sites, and the kinds of site there are."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vimlrp.tracing import active

__all__ = ["SITE_KINDS", "Site", "SumFactors"]

SumFactors = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the two summands of a sum to the factors of their gradients, all of one shape."""

SITE_KINDS = {
    "activation": "element-wise non-linearity",
    "step": "softplus of the scan's step size",
    "gate": "product of two branches",
    "normalisation": "division by a statistic of the input",
    "batch_norm": "batch normalisation by the statistics of training",
    "scan": "selective scan",
    "attention": "scaled dot-product attention",
    "excitation": "product with factors computed from the whole map",
    "pooling": "maximum or mean over a window",
    "convolution": "convolution inside the network",
    "projection": "linear layer inside the network",
    "head": "linear classifier",
    "patch_embedding": "first layer, on pixels",
    "residual": "sum of a branch and the residual stream",
}


class Site(nn.Module):
    """Base of all sites; a subclass writes `plain`, its ordinary forward."""

    kind: str

    def forward(self, *args: Any) -> Any:
        """Run plainly, or under the active trace's rule."""
        trace = active()
        return self.plain(*args) if trace is None else trace.visit(self, *args)

    def plain(self, *args: Any) -> Any:
        """Compute the output without any rule."""
        raise NotImplementedError
