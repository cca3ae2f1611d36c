"""Rules for the first layer only, where pixels have bounds and no zero of their own."""

from dataclasses import dataclass
from operator import lt
from typing import TYPE_CHECKING

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vimlrp.errors import CompositeError
from vimlrp.rules import AffineRule, Zero

if TYPE_CHECKING:
    from vimlrp.sites import AffineSite

__all__ = ["Box", "Flat"]

_CHANNELS = tuple(zip(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, strict=True))
_IMAGENET_LOW = tuple((0 - mean) / std for mean, std in _CHANNELS)
_IMAGENET_HIGH = tuple((1 - mean) / std for mean, std in _CHANNELS)


def _transpose(site: "AffineSite", weight: Tensor, like: Tensor, at_output: Tensor) -> Tensor:
    """Apply the transpose of the site's linear map: (B, D, h, w) to (B, 3, H, W)."""
    leaf = torch.zeros_like(like, requires_grad=True)
    with torch.enable_grad():
        out = site.linear(leaf, weight)
    (at_input,) = torch.autograd.grad(out, leaf, at_output)
    return at_input


def _ratio(relevance: Tensor, denominator: Tensor) -> Tensor:
    """Relevance over denominator, 0 where the denominator is 0."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.zeros_like(relevance), relevance / safe)


@dataclass(frozen=True)
class _InputRule(AffineRule):
    kinds = frozenset({"patch_embedding"})

    def spread(self, site: "AffineSite", x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute W x + b; relevance passes the layer through `relevance` alone."""
        return Zero().spread(site, x, weight, bias)


@dataclass(frozen=True)
class Flat(_InputRule):
    """Flat rule (Lapuschkin et al. 2019): every input value in reach receives the same."""

    def relevance(self, site: "AffineSite", x: Tensor, gradient: Tensor) -> Tensor:
        """Spread the relevance of each output evenly over its window."""
        weight = site.weight.detach().to(x.dtype)
        ones = torch.ones_like(weight)
        reach = site.linear(torch.ones_like(x), ones)
        content = site.linear(x, weight)
        return _transpose(site, ones, x, content * gradient / reach)


@dataclass(frozen=True)
class Box(_InputRule):
    """z^B rule (Montavon et al. 2017): relevance relative to the bounds of a pixel.

    Args:
        low: Lowest value of each channel after normalisation; black under ImageNet's by default.
        high: Highest value of each channel; white under ImageNet's by default.
    """

    low: tuple[float, ...] = _IMAGENET_LOW
    high: tuple[float, ...] = _IMAGENET_HIGH

    def __post_init__(self) -> None:
        given = isinstance(self.low, tuple) and isinstance(self.high, tuple)
        if not given or len(self.low) != len(self.high) or not all(map(lt, self.low, self.high)):
            raise CompositeError(
                f"{self} needs two tuples with a bound for every channel, low below high"
            )

    def relevance(self, site: "AffineSite", x: Tensor, gradient: Tensor) -> Tensor:
        """Spread R_k by x_j w_jk - low_j w_jk^+ - high_j w_jk^-."""
        weight = site.weight.detach().to(x.dtype)
        low = self._image(self.low, x)
        high = self._image(self.high, x)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        content = site.linear(x, weight)
        denominator = content - site.linear(low, up) - site.linear(high, down)
        scale = _ratio(content * gradient, denominator)
        direct = x * _transpose(site, weight, x, scale)
        bounds = low * _transpose(site, up, x, scale) + high * _transpose(site, down, x, scale)
        return direct - bounds

    def _image(self, bound: tuple[float, ...], like: Tensor) -> Tensor:
        values = torch.tensor(bound, dtype=like.dtype, device=like.device)
        return values.view(1, -1, 1, 1).expand_as(like).contiguous()
