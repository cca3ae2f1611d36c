"""The rules of attention, over tokens and over channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vimlrp.propagation import with_gradient_of
from vimlrp.rules import Rule
from vimlrp.tracing import active, constant

if TYPE_CHECKING:
    from vimlrp.sites import Attention, Excitation

__all__ = ["AttnLRP", "ConstantAttention", "ConstantGate"]


@dataclass(frozen=True)
class ConstantAttention(Rule):
    """Attention weights are constants (Ali et al. 2022): LRP-0 through the values.

    What the scan's rule is to the factors of a scan: y = [softmax(q k^T)]_cst v conserves, and
    queries and keys receive nothing.
    """

    kinds = frozenset({"attention"})

    def run(
        self, site: "Attention", q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Attend with the gradient of the linear map from v to the output."""
        return site.plain(constant(q), constant(k), v, None if bias is None else bias.detach())


@dataclass(frozen=True)
class AttnLRP(Rule):
    """AttnLRP (Achtibat et al., ICML 2024): through the softmax, half of each product a factor.

    Values and weights receive half of the output's relevance each (proposition 3.3), and so do
    queries and keys of the scores'. The softmax is expanded at its input (proposition 3.1),
    R(x_i) = x_i (R(s_i) - s_i sum_j R(s_j)): what the expansion's constant term takes stands in the
    account as "softmax".
    """

    kinds = frozenset({"attention"})

    def run(
        self, site: "Attention", q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Attend, with the weights written out; a bias takes its share of the scores'."""
        scores, trace = site.scores(_halved(q), _halved(k)), active()
        if bias is not None:
            scores = scores + bias.detach()
            if trace is not None:
                trace.absorb("bias: attention", scores, bias)
        weights = scores.softmax(-1)
        if trace is not None:
            trace.absorb("softmax", weights, _constant_term(scores.detach(), weights.detach()))
        return _halved(weights) @ _halved(v)


@dataclass(frozen=True)
class ConstantGate(Rule):
    """The factors of a squeeze-and-excitation are constants: relevance stays in the channel.

    They weigh channels as attention weighs tokens, so they are treated alike (Ali et al. 2022; the
    "signal takes all" of Arras et al. 2017 for the gates of recurrent networks).
    """

    kinds = frozenset({"excitation"})

    def run(self, site: "Excitation", x: Tensor) -> Tensor:
        """Multiply by the constant factors."""
        return site.scaled(x, constant(site.factor(x.detach())))


def _constant_term(scores: Tensor, weights: Tensor) -> Tensor:
    """s(x) - J x of the softmax's expansion at x, J its Jacobian."""
    return weights * (1 - scores + (weights * scores).sum(-1, keepdim=True))


def _halved(x: Tensor) -> Tensor:
    """The same values with half the gradient."""
    return with_gradient_of(x, x, x.new_tensor(0.5).expand_as(x))
