"""Counterparts of layers that divide by a statistic of their input."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp import sites
from vimlrp.sites import Site
from vimlrp.tracing import active, at_least_float32, constant, frozen
from vimlrp.wrapping.cloning import Counterpart, Table

__all__ = ["TABLE"]


def _note_bias(site: Site, out: Tensor, bias: Tensor | None) -> Tensor:
    """Note in the account what a shift takes of an output."""
    trace = active()
    if trace is not None and bias is not None:
        trace.absorb(f"bias: {site.kind}", out, bias)
    return out


class _LayerNorm(Counterpart, sites.LayerNorm):
    """Over the last axis, or the last few; weights and shift may be missing."""

    normalized_shape: tuple[int, ...]
    weight: Any
    bias: Any

    def held(self, x: Tensor) -> Tensor:
        """Centre, scale and shift x by its own statistic, held constant."""
        if len(self.normalized_shape) == 1 and self.weight is not None and self.bias is not None:
            return super().held(x)
        axes = tuple(range(-len(self.normalized_shape), 0))
        wide = x.to(at_least_float32(x))
        centred = wide - wide.mean(axes, keepdim=True)
        variance = centred.detach().square().mean(axes, keepdim=True)
        out = centred * constant((variance + self.eps).rsqrt())
        return self._shifted(out).to(x.dtype)

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistics."""
        bias = None if self.bias is None else frozen(self.bias)
        out = F.layer_norm(x, self.normalized_shape, self.weight, bias, self.eps)
        return _note_bias(self, out, bias)

    def _shifted(self, x: Tensor) -> Tensor:
        x = x if self.weight is None else x * self.weight.detach()
        if self.bias is None:
            return x
        bias = self.bias.detach()
        return _note_bias(self, x + bias, bias)

    def extra_repr(self) -> str:
        """Say the size."""
        return f"{self.normalized_shape}, eps={self.eps}"


class _LayerNorm2d(_LayerNorm):
    """Over the channels of maps (B, C, H, W)."""

    def held(self, x: Tensor) -> Tensor:
        """Normalise each place's channels."""
        return super().held(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def plain(self, x: Tensor) -> Tensor:
        """Normalise each place's channels."""
        return super().plain(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _GroupNorm(Counterpart, sites.Norm):
    """Over groups of channels and all places (Wu and He 2018)."""

    num_groups: int
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def held(self, x: Tensor) -> Tensor:
        """Centre, scale and shift x by its own statistic, held constant."""
        groups = x.to(at_least_float32(x)).unflatten(1, (self.num_groups, -1))
        axes = tuple(range(2, groups.dim()))
        centred = groups - groups.mean(axes, keepdim=True)
        variance = centred.detach().square().mean(axes, keepdim=True)
        out = (centred * constant((variance + self.eps).rsqrt())).flatten(1, 2)
        out = out if self.weight is None else out * self._spread(self.weight, x)
        bias = self._shift(x)
        out = (out if bias is None else out + bias).to(x.dtype)
        return _note_bias(self, out, bias)

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistics."""
        out = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return _note_bias(self, out, self._shift(x))

    def _shift(self, x: Tensor) -> Tensor | None:
        return None if self.bias is None else self._spread(self.bias, x)

    def _spread(self, values: Tensor, like: Tensor) -> Tensor:
        return values.detach().view(-1, *(1 for _ in like.shape[2:]))


class _RMSNorm(Counterpart, sites.Norm):
    """x / sqrt(mean(x^2) + eps) * weight, without a centring, over the last axis."""

    axis = -1
    eps: float | None
    weight: Tensor | None

    def held(self, x: Tensor) -> Tensor:
        """Scale x by its own inverse statistic, held constant, and by the weight."""
        return self._scaled(x, constant(self._inverse(x.detach())))

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistic."""
        return self._scaled(x, self._inverse(x))

    def _inverse(self, x: Tensor) -> Tensor:
        wide = x.to(at_least_float32(x))
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return (wide.square().mean(self.axis, keepdim=True) + eps).rsqrt()

    def _scaled(self, x: Tensor, inverse: Tensor) -> Tensor:
        out = x * inverse
        if self.weight is not None:
            shape = [1] * x.dim()
            shape[self.axis] = -1
            out = out * frozen(self.weight).view(shape)
        return out.to(x.dtype)


class _RMSNorm2d(_RMSNorm):
    """Over the channels of maps (B, C, H, W)."""

    axis = 1


class _ResponseNorm(Counterpart, sites.Norm):
    """Global response normalisation, x (1 + w n(x)) + b (Woo et al. 2023, section 3.2).

    https://arxiv.org/abs/2301.00808. n is the norm of a channel's map over the mean of all
    channels' norms: a statistic of the input, held constant as the other norms' is.
    """

    eps: float
    spatial_dim: tuple[int, int]
    channel_dim: int
    wb_shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor

    def held(self, x: Tensor) -> Tensor:
        """Scale by the constant statistic."""
        return self._scaled(x, constant(self._statistic(x.detach())))

    def plain(self, x: Tensor) -> Tensor:
        """Scale by the input's own statistic."""
        return self._scaled(x, self._statistic(x))

    def _statistic(self, x: Tensor) -> Tensor:
        norms = x.norm(p=2, dim=self.spatial_dim, keepdim=True)
        return norms / (norms.mean(dim=self.channel_dim, keepdim=True) + self.eps)

    def _scaled(self, x: Tensor, statistic: Tensor) -> Tensor:
        weight, bias = (p.detach().view(self.wb_shape) for p in (self.weight, self.bias))
        return _note_bias(self, x * (1 + weight * statistic) + bias, bias)


class _Followed(Counterpart):
    """A norm followed by an activation, a site of its own."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Any:
        """Normalise, then activate."""
        return self.act(self.drop(super().forward(x)))


class _LayerNormAct(_Followed, _LayerNorm):
    pass


class _LayerNormAct2d(_Followed, _LayerNorm2d):
    pass


class _GroupNormAct(_Followed, _GroupNorm):
    pass


class _RMSNormAct(_Followed, _RMSNorm):
    pass


class _RMSNormAct2d(_Followed, _RMSNorm2d):
    pass


_TORCH, _TIMM = "torch.nn.modules.normalization.", "timm.layers.norm."
_ACT = "timm.layers.norm_act."

TABLE: Table = {
    f"{_TORCH}LayerNorm": _LayerNorm,
    f"{_TORCH}GroupNorm": _GroupNorm,
    f"{_TORCH}RMSNorm": _RMSNorm,
    f"{_TIMM}LayerNorm": _LayerNorm,
    f"{_TIMM}LayerNormFp32": _LayerNorm,
    f"{_TIMM}LayerNorm2d": _LayerNorm2d,
    f"{_TIMM}LayerNorm2dFp32": _LayerNorm2d,
    f"{_TIMM}GroupNorm": _GroupNorm,
    f"{_TIMM}GroupNorm1": _GroupNorm,
    f"{_TIMM}RmsNorm": _RMSNorm,
    f"{_TIMM}RmsNormFp32": _RMSNorm,
    f"{_TIMM}RmsNorm2d": _RMSNorm2d,
    f"{_TIMM}RmsNorm2dFp32": _RMSNorm2d,
    f"{_ACT}LayerNormAct": _LayerNormAct,
    f"{_ACT}LayerNormActFp32": _LayerNormAct,
    f"{_ACT}LayerNormAct2d": _LayerNormAct2d,
    f"{_ACT}LayerNormAct2dFp32": _LayerNormAct2d,
    f"{_ACT}GroupNormAct": _GroupNormAct,
    f"{_ACT}GroupNorm1Act": _GroupNormAct,
    f"{_ACT}RmsNormAct": _RMSNormAct,
    f"{_ACT}RmsNormActFp32": _RMSNormAct,
    f"{_ACT}RmsNormAct2d": _RMSNormAct2d,
    f"{_ACT}RmsNormAct2dFp32": _RMSNormAct2d,
    "timm.layers.grn.GlobalResponseNorm": _ResponseNorm,
}
