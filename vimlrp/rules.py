"""The rules: how relevance passes a site.

Each rule leaves the value of its site unchanged and prescribes the gradient, so that activation
times gradient is the relevance. Equation numbers are those of MambaLRP (Jafari et al., NeurIPS
2024), unless another source is named. A rule is a frozen dataclass: data that can be compared,
printed and put into a composite.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from vimlrp.errors import CompositeError
from vimlrp.kernels.fused.pointwise import gamma_shares
from vimlrp.propagation import share_product, with_gradient_of, with_gradients_of
from vimlrp.tracing import InputRecord, active, at_least_float32

if TYPE_CHECKING:
    from vimlrp.sites import Activation, AffineSite, Gate, Norm, Residual, Scan, TokenSum

__all__ = [
    "AffineRule",
    "ConstantFactors",
    "ConstantNormaliser",
    "Epsilon",
    "Gamma",
    "GammaSum",
    "Gradient",
    "Identity",
    "Rule",
    "Share",
    "ShareFactors",
    "Zero",
]


@dataclass(frozen=True)
class Rule:
    """Base of all rules."""

    kinds: ClassVar[frozenset[str]] = frozenset()
    """The kinds of site on which the rule is defined."""

    @property
    def free(self) -> tuple[str, ...]:
        """The factors of a scan through which relevance flows; all of them by default."""
        return ("u", "A", "B", "C")

    def run(self, site: Any, *args: Any) -> Any:
        """Compute the site's output with the gradient that the rule prescribes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gradient(Rule):
    """Gradient x input: the site's plain gradient, which conserves only where it is linear."""

    kinds = frozenset(
        {
            "activation",
            "step",
            "gate",
            "normalisation",
            "scan",
            "attention",
            "excitation",
            "pooling",
            "residual",
        }
    )

    def run(self, site: Any, *args: Any) -> Any:
        """Run the site as it is."""
        return site.plain(*args)


@dataclass(frozen=True)
class Identity(Rule):
    """Identity rule of an activation, Eq. (4): y = x [f(x)/x]_cst, so R(x) = R(y)."""

    kinds = frozenset({"activation"})

    def run(self, site: "Activation", x: Tensor) -> Tensor:
        """Carry the gradient through x times the constant ratio f(x)/x, f'(0) at x = 0."""
        return with_gradient_of(site.plain(x), x, site.ratio(x.detach()))


@dataclass(frozen=True)
class Share(Rule):
    """Rule of a gate, Eq. (9): its factors receive fixed shares of the product's relevance.

    Shares that sum to 1 conserve. Half and half is the paper's rule; (1, 0) and (0, 1) are the
    variants of its appendix C.5 that hold one factor constant.
    """

    signal: float = 0.5
    gate: float = 0.5
    kinds = frozenset({"gate"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.signal) and math.isfinite(self.gate)):
            raise CompositeError(f"{self} needs finite shares")

    def run(self, site: "Gate", signal: Tensor, gate: Tensor) -> Tensor:  # noqa: ARG002
        """Multiply and share."""
        return share_product(signal, gate, self.signal, self.gate)


@dataclass(frozen=True)
class ConstantNormaliser(Rule):
    """Rule of a norm (Ali et al. 2022): the divisor is a constant, the centring is kept."""

    kinds = frozenset({"normalisation"})

    def run(self, site: "Norm", x: Tensor) -> Tensor:
        """Divide by the constant normaliser."""
        return site.held(x)


@dataclass(frozen=True)
class ConstantFactors(Rule):
    """Rule of the selective scan, Eqs. (5) to (7): exp(dt A), dt B and C are constants.

    Args:
        factors: Which of "A", "B" and "C" are held constant; all three is the paper's rule.
    """

    factors: tuple[str, ...] = ("A", "B", "C")
    kinds = frozenset({"scan"})

    def __post_init__(self) -> None:
        if not set(self.factors) <= {"A", "B", "C"}:
            raise CompositeError(f"{self} names factors that are not among A, B and C")

    @property
    def free(self) -> tuple[str, ...]:
        """Those that are not held constant, and u."""
        return ("u", *(name for name in ("A", "B", "C") if name not in self.factors))

    def run(self, site: "Scan", *args: Any) -> Tensor:
        """Scan with the gradient of the linear map from u to y."""
        return site.scan(*args, grad=self.free)


@dataclass(frozen=True)
class ShareFactors(Rule):
    """Rule of products of AttnLRP (Achtibat et al. 2024) in a selective scan: u, B and C share.

    With exp(dt A) and dt constant every term of C_t h_t is a product of C_t, B_s and u_s, so that
    each factor times its gradient is the term: shares that sum to 1 conserve, and D u goes to u.
    In Vim and VMamba, B and C are linear in u without a bias, and pass on all they receive.

    Args:
        signal: Share of u.
        write: Share of B.
        read: Share of C.
    """

    signal: float = 0.5
    write: float = 0.25
    read: float = 0.25
    kinds = frozenset({"scan"})

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.signal, self.write, self.read))):
            raise CompositeError(f"{self} needs finite shares")

    @property
    def free(self) -> tuple[str, ...]:
        """All but the decay."""
        return ("u", "B", "C")

    def run(self, site: "Scan", *args: Any) -> Tensor:
        """Scan with a share of each gradient, and the skip with its whole one."""
        u, dt, A, B, C, D, *order = args
        B, C = _scaled(B, self.write), _scaled(C, self.read)
        without_skip = _scaled(u, self.signal), dt.detach(), A, B, C, torch.zeros_like(D)
        y = site.scan(*without_skip, *order, grad=self.free)  # (B, K, L, E)
        source = u if u.dim() == y.dim() else u.unsqueeze(1)
        return y + source * D.detach().unsqueeze(1)


def _scaled(x: Tensor, share: float) -> Tensor:
    return with_gradient_of(x, x, torch.full_like(x, share))


@dataclass(frozen=True)
class AffineRule(Rule):
    """Base of the rules for z = W x + b: linear layers, convolutions, batch norms, patches."""

    kinds = frozenset({"convolution", "projection", "batch_norm", "head", "patch_embedding"})

    def run(self, site: "AffineSite", x: Tensor) -> Tensor:
        """Compute W x + b and note what the bias takes."""
        weight, bias = site.constants()
        if site.kind == "patch_embedding":
            return self._begin(site, x, bias)
        return self.spread(site, x, weight, bias)

    def spread(self, site: "AffineSite", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute W x + b with the rule's gradient, for constants `weight` and `bias`."""
        raise NotImplementedError

    def relevance(self, site: "AffineSite", x: Tensor, gradient: Tensor) -> Tensor:
        """Pass relevance from the bias-free output of the first layer to the model's input.

        Args:
            site: The patch embedding.
            x: The model's input, (B, 3, H, W).
            gradient: The gradient at W x, so that W x times it is its relevance.

        Returns:
            The relevance of every input value, (B, 3, H, W).
        """
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            out = self.spread(site, leaf, site.weight.detach().to(x.dtype), None)
        (at_input,) = torch.autograd.grad(out, leaf, gradient)
        return leaf.detach() * at_input

    def _begin(self, site: "AffineSite", x: Tensor, bias: Tensor | None) -> Tensor:
        # The token is a sum: content, bias and position share it in proportion (LRP-0); what the
        # content receives is passed on to the pixels by `relevance` once its gradient is known.
        content = site.linear(x, site.weight.detach()).detach().requires_grad_()
        trace = active()
        if trace is not None:
            trace.input = InputRecord(site, x, content)
        if bias is None:
            return content
        out = content + bias
        _absorb(site, "bias", out, bias)
        return out


@dataclass(frozen=True)
class Zero(AffineRule):
    """LRP-0: R_j = sum_k x_j w_jk / z_k R_k, the plain gradient of an affine map."""

    def spread(self, site: "AffineSite", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute W x + b as it is."""
        z = site.linear(x, weight)
        if bias is None:
            return z
        z = z + bias
        _absorb(site, "bias", z, bias)
        return z


@dataclass(frozen=True)
class Epsilon(AffineRule):
    """LRP-epsilon (Bach et al. 2015): z_k + epsilon sign(z_k) in the denominator.

    Args:
        epsilon: The stabiliser, in the units of z; what it absorbs stands in the account.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise CompositeError(f"{self} needs an epsilon above 0; the rule without one is Zero")

    def spread(self, site: "AffineSite", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Scale the gradient of W x + b by z / (z + epsilon sign z)."""
        z = site.linear(x, weight) if bias is None else site.linear(x, weight) + bias
        value = z.detach()
        sign = torch.where(value < 0, -1.0, 1.0).to(value.dtype)
        factor = value / (value + self.epsilon * sign)
        out = with_gradient_of(value, z, factor)
        if bias is not None:
            _absorb(site, "bias", out, bias * factor)
        _absorb(site, "stabiliser", out, value * (1 - factor))
        return out


@dataclass(frozen=True)
class Gamma(AffineRule):
    """Generalised LRP-gamma (MambaLRP, appendix C.2; Andeol et al. 2022).

    Contributions of the sign of z_k count 1 + gamma times. With m the sum of the magnitudes of all
    contributions, those of the sign of z_k sum to (z_k + sign(z_k) m) / 2, and the denominator is
    z_k plus gamma times that: never nearer to zero than z_k itself. A z_k of exactly 0 has no sign,
    and the rule is LRP-0 there; a contribution of exactly 0 counts half with either sign.

    Args:
        gamma: How much more the contributions of the winning sign count.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise CompositeError(f"{self} needs a finite gamma of 0 or more")

    def spread(self, site: "AffineSite", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Give z and the sum of magnitudes what the contributions' shares make of a gradient."""
        rows = site.rows(x, weight)
        z = site.product(rows, weight) if bias is None else site.product(rows, weight) + bias
        magnitude = _magnitude(site, rows, weight, bias, widened=self.gamma > _NARROW)
        value = z.detach()
        wide = value.to(magnitude.dtype)
        at_z, at_magnitude = gamma_shares(wide, magnitude.detach(), self.gamma)
        out = with_gradients_of(value, (z, at_z), (magnitude, at_magnitude))
        if bias is not None:
            taken = torch.addcmul(at_z * bias, at_magnitude, bias.abs())
            _absorb(site, "bias", out, taken)
        return out


@dataclass(frozen=True)
class GammaSum(Rule):
    """Generalised LRP-gamma at a sum of two (ResLRP, Berend et al. 2026).

    Under LRP-0 summands a and b that cancel receive a/z and b/z of the relevance of z = a + b,
    which grow without bound. Here the summands of the sign of z count 1 + gamma times, and the
    magnitudes of both shares sum to 1 + 2 / gamma at most. A z of exactly 0 is treated as by
    `Gamma`.

    Args:
        gamma: How much more the summands of the winning sign count; 0 is LRP-0.
    """

    gamma: float = 1.0
    kinds = frozenset({"residual"})

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise CompositeError(f"{self} needs a finite gamma of 0 or more")

    def run(self, site: "Residual | TokenSum", *args: Any) -> Tensor:
        """Add, with the gradient that makes value times gradient each summand's share."""
        return site.weighed(self._factors, *args)

    def _factors(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(wide), b.to(wide)
        at_z, at_magnitude = gamma_shares(a + b, a.abs() + b.abs(), self.gamma)
        return at_z + at_magnitude * a.sign(), at_z + at_magnitude * b.sign()


# The relevance of contributions against the sign of z is a difference, of 1 + gamma / 2 and
# gamma / 2 times them. Up to here it is no worse than the larger one's rounding doubled.
_NARROW = 1.0


def _magnitude(
    site: "AffineSite", rows: Tensor, weight: Tensor, bias: Tensor | None, widened: bool
) -> Tensor:
    """Sum the magnitudes of all contributions to W x + b, in float32 at least.

    Unless `widened`, the product itself stays in the model's own type: dense convolutions in
    float32 cost several times as much as the rest of a half-precision layer.
    """
    if widened:
        rows, weight = rows.to(at_least_float32(rows)), weight.to(at_least_float32(weight))
    total = site.product(rows.abs(), weight.abs())
    total = total.to(at_least_float32(total))
    return total if bias is None else total + bias.abs()


def _absorb(site: "AffineSite", what: str, stream: Tensor, share: Tensor) -> None:
    trace = active()
    if trace is not None:
        trace.absorb(what if what == "stabiliser" else f"{what}: {site.kind}", stream, share)
