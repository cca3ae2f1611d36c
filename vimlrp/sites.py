"""The places in a forward pass where relevance needs a rule, each a small module.

A model built from sites shows in its structure where rules act. In a plain forward pass a site is
an ordinary layer; while a `vimlrp.tracing.Trace` is active it runs under the rule that the
composite gives it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.kernels import ScanOrder, selective_scan
from vimlrp.tokens import TokenLayout
from vimlrp.tracing import TokenRecord, active, at_least_float32, constant, frozen

__all__ = [
    "SITE_KINDS",
    "Activation",
    "AffineSite",
    "CausalConv1d",
    "Gate",
    "Linear",
    "Norm",
    "PatchEmbedding",
    "RMSNorm",
    "Residual",
    "Scan",
    "Site",
    "Step",
    "TokenSum",
]

SITE_KINDS = {
    "activation": "element-wise non-linearity",
    "step": "softplus of the scan's step size",
    "gate": "product of two branches",
    "normalisation": "division by a statistic of the input",
    "scan": "selective scan",
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


def _gelu_ratio(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, torch.sigmoid),
    "gelu": (F.gelu, _gelu_ratio),
    "relu": (F.relu, lambda x: (x > 0).to(x.dtype)),
}


class Activation(Site):
    """An element-wise non-linearity f with f(0) = 0.

    Args:
        name: "silu", "gelu" or "relu".
    """

    kind = "activation"

    def __init__(self, name: str = "silu") -> None:
        super().__init__()
        self.name = name
        self._function, self._ratio = _ACTIVATIONS[name]

    def plain(self, x: Tensor) -> Tensor:
        """Compute f(x)."""
        return self._function(x)

    def ratio(self, x: Tensor) -> Tensor:
        """f(x) / x in closed form, which is f'(0) at 0: sigmoid(x) for SiLU."""
        return self._ratio(x)

    def extra_repr(self) -> str:
        """Name the function."""
        return self.name


class Step(Site):
    """The step size of a scan: softplus, linear above 20."""

    kind = "step"

    def plain(self, x: Tensor) -> Tensor:
        """Compute log(1 + exp(x)) in float32 at least."""
        return F.softplus(x.to(at_least_float32(x)))


class Gate(Site):
    """A branch multiplied by another that depends on the input too."""

    kind = "gate"

    def plain(self, signal: Tensor, gate: Tensor) -> Tensor:
        """Multiply."""
        return signal * gate


class Residual(Site):
    """A branch added to the residual stream, which is kept in float32 at least."""

    kind = "residual"

    def plain(self, residual: Tensor, branch: Tensor) -> Tensor:
        """Add."""
        return residual + branch


class Norm(Site):
    """A normalisation: centring, division by a statistic, scale."""

    kind = "normalisation"

    def divisor(self, x: Tensor) -> Tensor:
        """The inverse of the statistic that x is multiplied by, (..., 1)."""
        raise NotImplementedError

    def normalise(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Scale x by the given inverse statistic and by the weight."""
        raise NotImplementedError

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistic."""
        return self.normalise(x, self.divisor(x))


class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in float32 at least.

    Args:
        dim: Size of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def divisor(self, x: Tensor) -> Tensor:
        """1 / sqrt(mean(x^2) + eps)."""
        x = x.to(at_least_float32(x))
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def normalise(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Scale x, and return it in the weight's type."""
        return (x * inverse * frozen(self.weight)).to(self.weight.dtype)


class AffineSite(Site):
    """W x + b for some linear map W: what the affine rules need to know of a layer."""

    weight: Tensor
    bias: Tensor | None

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the linear map with another weight and no bias."""
        raise NotImplementedError

    def broadcast(self, bias: Tensor) -> Tensor:
        """Shape a (D,) bias so that it broadcasts to the output."""
        return bias

    def plain(self, x: Tensor) -> Tensor:
        """Compute W x + b."""
        z = self.linear(x, self.weight)
        return z if self.bias is None else z + self.broadcast(self.bias)


class Linear(AffineSite):
    """`torch.nn.Linear` as a site.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Whether to add a bias.
        kind: "projection" inside the network, "head" for the classifier.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, kind: str = "projection"
    ) -> None:
        super().__init__()
        self.kind = kind
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return F.linear(x, weight)

    def plain(self, x: Tensor) -> Tensor:
        """Compute W x + b in one call."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Say the sizes."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class CausalConv1d(AffineSite):
    """Depthwise causal convolution along the sequence, channels last.

    Output t sees inputs t - width + 1 to t; walked in reverse, t to t + width - 1, so that a
    backward branch needs no flipped copy.

    Args:
        dim: Channels D.
        width: Taps.
        reverse: Walk the sequence from its end.
    """

    kind = "convolution"

    def __init__(self, dim: int, width: int, reverse: bool = False) -> None:
        super().__init__()
        self.reverse = reverse
        self.weight = nn.Parameter(torch.empty(dim, 1, width))
        self.bias = nn.Parameter(torch.empty(dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.uniform_(self.bias, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        width, length = weight.shape[-1], x.shape[1]
        pad = (0, 0, 0, width - 1) if self.reverse else (0, 0, width - 1, 0)
        x = F.pad(x, pad)  # (B, L + width - 1, D)
        taps = weight[:, 0].flip(-1) if self.reverse else weight[:, 0]
        out = x[:, :length] * taps[:, 0]
        for tap in range(1, width):
            out = out + x[:, tap : tap + length] * taps[:, tap]
        return out

    def extra_repr(self) -> str:
        """Say the sizes."""
        dim, _, width = self.weight.shape
        return f"{dim}, width={width}, reverse={self.reverse}"


class PatchEmbedding(AffineSite):
    """The convolution that cuts an image into patches, overlapping where stride < kernel.

    Args:
        in_chans: Channels of the image.
        embed_dim: Channels D of a patch.
        kernel: Side of a patch in pixels.
        stride: Distance between patches in pixels.
    """

    kind = "patch_embedding"

    def __init__(self, in_chans: int, embed_dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(embed_dim, in_chans, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(embed_dim))
        nn.init.normal_(self.weight, std=math.sqrt(1 / (in_chans * kernel**2)))

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, h, w)."""
        return F.conv2d(x, weight, stride=self.stride)

    def broadcast(self, bias: Tensor) -> Tensor:
        """(D,) to (D, 1, 1)."""
        return bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Say the sizes."""
        dim, chans, kernel, _ = self.weight.shape
        return f"{chans}, {dim}, kernel={kernel}, stride={self.stride}"


class TokenSum(Site):
    """Patches, class tokens and position embedding summed into the sequence.

    Token relevances are read here, after the sum, as the official MambaLRP reads them; what the
    class tokens and the position embedding take of them stands in the account.
    """

    kind = "residual"

    def plain(
        self, patches: Tensor, special: Tensor, position: Tensor | None, layout: TokenLayout
    ) -> Tensor:
        """Insert the class tokens and add the position embedding.

        Args:
            patches: (B, M, D).
            special: (B, S, D).
            position: (1, L, D) or None.
            layout: Where the class tokens go.
        """
        sequence = layout.insert(patches, special)
        trace = active()
        if trace is None:
            return sequence if position is None else sequence + position
        tokens = sequence if position is None else sequence + position.detach()
        trace.tokens = TokenRecord(tokens, layout)
        trace.absorb("class token", tokens, layout.insert(torch.zeros_like(patches), special))
        if position is not None:
            trace.absorb("position embedding", tokens, position)
        return tokens


class Scan(Site):
    """Selective scans of all directions; see `vimlrp.kernels.selective_scan` for the shapes.

    Args:
        order: The scan orders.
        backend: Which kernel runs it.
    """

    kind = "scan"

    def __init__(self, order: ScanOrder, backend: str = "auto") -> None:
        super().__init__()
        self.order = order
        self.backend = backend

    def parameter_source(self, u: Tensor) -> Tensor:
        """The tensor from which dt, B and C are computed: a constant where the rule says so."""
        trace = active()
        if trace is None or trace.rule_of(self).free != ("u",):
            return u
        return constant(u)

    def scan(
        self, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, grad: Any
    ) -> Tensor:
        """Scan with the gradient through the factors named by `grad`."""
        return selective_scan(u, dt, A, B, C, D, order=self.order, grad=grad, backend=self.backend)

    def plain(self, *args: Tensor) -> Tensor:
        """Scan with the full gradient."""
        return self.scan(*args, grad="full")
