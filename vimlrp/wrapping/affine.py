"""Counterparts of layers that compute W x + b: convolutions, linear layers, batch norms."""

from typing import Any

import torch
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor, nn

from vimlrp.errors import UnsupportedModelError
from vimlrp.kernels.products import input_linear
from vimlrp.sites import AffineSite, Site
from vimlrp.tracing import at_least_float32
from vimlrp.wrapping.cloning import Counterpart, Table

__all__ = ["TABLE", "Convolution"]


class Convolution(Counterpart, AffineSite):
    """A convolution of any number of axes; one of single cells is a projection.

    `cells` counts only for the first layer; see `vimlrp.sites.PatchEmbedding`.
    """

    kind = "convolution"
    cells = 1
    kernel_size: tuple[int, ...]
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    _conv_forward: Any

    def settle(self) -> None:
        """Tell projections from convolutions."""
        if all(side == 1 for side in self.kernel_size):
            self.kind = "projection"

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, ...) to (B, D, ...)."""
        out: Tensor = self._conv_forward(x, weight, None)
        return out

    def broadcast(self, bias: Tensor) -> Tensor:
        """(D,) to (D, 1, ...)."""
        return bias.view(-1, *(1 for _ in self.kernel_size))


class _SameConvolution(Convolution):
    """Padded to TensorFlow's sizes, which depend on the input's."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, ceil(H / stride), ceil(W / stride))."""
        options = (self.stride, self.padding, self.dilation, self.groups)
        out: Tensor = conv2d_same(x, weight, None, *options)
        return out


class _StandardisedConvolution(Convolution):
    """With weights standardised per output channel, which are the weights that a rule sees.

    Qiao et al. 2019, https://arxiv.org/abs/1903.10520; with a gain Brock et al. 2021,
    https://arxiv.org/abs/2101.08692.
    """

    eps: float

    def __getattr__(self, name: str) -> Any:
        """Give the standardised weights wherever the weights are asked for."""
        value = super().__getattr__(name)
        return self._standardised(value) if name == "weight" else value

    def _standardised(self, weight: Any) -> Tensor:
        rows: Tensor = weight.flatten(1)  # (D, C h w)
        variance, mean = torch.var_mean(rows, dim=1, correction=0, keepdim=True)
        rows = (rows - mean) * (variance + self.eps).rsqrt()
        if "gain" in self._parameters:
            rows = rows * (self.gain * self.scale).flatten(1)
        return rows.view_as(weight)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, h, w)."""
        if getattr(self, "same_pad", False):
            options = (self.stride, self.padding, self.dilation, self.groups)
            out: Tensor = conv2d_same(x, weight, None, *options)
            return out
        return super().linear(x, weight)


class _Linear(Counterpart, AffineSite):
    """A linear layer over the last axis."""

    kind = "projection"

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(..., C) to (..., D)."""
        return input_linear(x, weight)


class _BatchNorm(Counterpart, AffineSite):
    """x s + t by the statistics of training; see `vimlrp.sites.BatchNorm2d`."""

    kind = "batch_norm"
    axes = 2
    eps: float
    running_mean: Tensor | None
    running_var: Tensor | None

    def settle(self) -> None:
        """Refuse one that normalises by the batch also in evaluation mode."""
        if self.running_mean is None:
            raise UnsupportedModelError(
                "a batch norm without running statistics normalises by the batch, so that every "
                "image's relevance would depend on the others; keep its statistics in training"
            )

    def plain(self, x: Tensor) -> Tensor:
        """(B, C, ...), by the batch's own statistics in training and the running ones after."""
        module: Any = nn.modules.batchnorm._BatchNorm
        out: Tensor = module.forward(self, x)
        return out

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Scale each channel."""
        return x * self.broadcast(weight).to(x.dtype)

    def broadcast(self, bias: Tensor) -> Tensor:
        """(C,) to (C, 1, ...)."""
        return bias.view(-1, *(1 for _ in range(self.axes)))

    def constants(self) -> tuple[Tensor, Tensor]:
        """The scale s, (C,), and the shift t as it is added."""
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None:
            raise UnsupportedModelError("the batch norm has lost its running statistics")
        precise = at_least_float32(mean)
        scale = (variance.to(precise) + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight.detach().to(precise)
        shift = -mean.to(precise) * scale
        shift = shift if self.bias is None else shift + self.bias.detach().to(precise)
        dtype = mean.dtype if self.weight is None else self.weight.dtype
        return scale.to(dtype), self.broadcast(shift).to(dtype)


class _BatchNorm1d(_BatchNorm):
    """Of vectors, (B, C), or of sequences, (B, C, L)."""

    axes = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise vectors as sequences of one place."""
        if x.dim() == 2:
            vectors: Tensor = super().forward(x.unsqueeze(-1)).squeeze(-1)
            return vectors
        out: Tensor = super().forward(x)
        return out


class _BatchNormAct(_BatchNorm):
    """Followed by an activation, a site of its own."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        out: Tensor = self.act(self.drop(Site.forward(self, x)))
        return out


TABLE: Table = {
    "torch.nn.modules.conv.Conv1d": Convolution,
    "torch.nn.modules.conv.Conv2d": Convolution,
    "timm.layers.conv2d_same.Conv2dSame": _SameConvolution,
    "timm.layers.std_conv.StdConv2d": _StandardisedConvolution,
    "timm.layers.std_conv.StdConv2dSame": _StandardisedConvolution,
    "timm.layers.std_conv.ScaledStdConv2d": _StandardisedConvolution,
    "timm.layers.std_conv.ScaledStdConv2dSame": _StandardisedConvolution,
    "torch.nn.modules.linear.Linear": _Linear,
    "timm.layers.linear.Linear": _Linear,
    "timm.layers.classifier.Linear": _Linear,
    "torch.nn.modules.batchnorm.BatchNorm1d": _BatchNorm1d,
    "torch.nn.modules.batchnorm.BatchNorm2d": _BatchNorm,
    "timm.layers.norm_act.BatchNormAct2d": _BatchNormAct,
}
