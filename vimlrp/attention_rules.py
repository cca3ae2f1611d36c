"""The rules of attention: how relevance passes softmax(q k^T / sqrt(d)) v."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vimlrp.propagation import with_gradient_of
from vimlrp.rules import Rule
from vimlrp.tracing import active, constant

if TYPE_CHECKING:
    from vimlrp.sites import Attention

__all__ = ["AttnLRP", "ConstantAttention"]


@dataclass(frozen=True)
class ConstantAttention(Rule):
    """Attention weights are constants (Ali et al. 2022): LRP-0 through the values.

    What the scan's rule is to the factors of a scan: y = [softmax(q k^T)]_cst v conserves, and
    queries and keys receive nothing.
    """

    kinds = frozenset({"attention"})

    def run(self, site: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with the gradient of the linear map from v to the output."""
        return site.plain(constant(q), constant(k), v)


@dataclass(frozen=True)
class AttnLRP(Rule):
    """AttnLRP (Achtibat et al., ICML 2024): through the softmax, half of each product a factor.

    Values and weights receive half of the output's relevance each (proposition 3.3), and so do
    queries and keys of the scores'. The softmax is expanded at its input (proposition 3.1),
    R(x_i) = x_i (R(s_i) - s_i sum_j R(s_j)): what the expansion's constant term takes stands in the
    account as "softmax".
    """

    kinds = frozenset({"attention"})

    def run(self, site: "Attention", q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend, with the weights written out."""
        scores = site.scores(_halved(q), _halved(k))
        weights = scores.softmax(-1)
        trace = active()
        if trace is not None:
            trace.absorb("softmax", weights, _constant_term(scores.detach(), weights.detach()))
        return _halved(weights) @ _halved(v)


def _constant_term(scores: Tensor, weights: Tensor) -> Tensor:
    """s(x) - J x of the softmax's expansion at x, J its Jacobian."""
    return weights * (1 - scores + (weights * scores).sum(-1, keepdim=True))


def _halved(x: Tensor) -> Tensor:
    """The same values with half the gradient."""
    return with_gradient_of(x, x, x.new_tensor(0.5).expand_as(x))
