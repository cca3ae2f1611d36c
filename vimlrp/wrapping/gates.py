"""Counterparts of modules that multiply branches, weigh channels, or pool maps."""

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.sites import Excitation, Gate, Site
from vimlrp.tracing import frozen
from vimlrp.wrapping.cloning import Counterpart, Table

__all__ = ["TABLE"]


class _Excitation(Counterpart, Excitation):
    """Factors from the mean of every channel's map, through a chain of layers.

    `chain` names the layers in the order in which they run; what a module lacks is left out.
    """

    chain: tuple[str, ...] = ("fc1", "bn", "act", "fc2", "gate")
    axes: tuple[int, ...] = (2, 3)

    def factor(self, x: Tensor) -> Tensor:
        """Squeeze, and run the chain: (B, C, 1, 1)."""
        y: Tensor = x.mean(self.axes, keepdim=True)
        if getattr(self, "add_maxpool", False):
            y = 0.5 * y + 0.5 * x.amax(self.axes, keepdim=True)
        for name in self.chain:
            layer = getattr(self, name, None)
            y = y if layer is None else layer(y)
        return y


class _EfficientExcitation(_Excitation):
    chain = ("conv_reduce", "act1", "conv_expand", "gate")


class _EffectiveExcitation(_Excitation):
    chain = ("fc", "gate")


class _ExcitationLast(_Excitation):
    """Of maps with their channels last, (B, H, W, C)."""

    axes = (1, 2)


class _ChannelConvolution(_Excitation):
    """Factors by a convolution along the channels (ECA, Wang et al. 2020)."""

    chain = ("conv", "act", "conv2", "gate")

    def factor(self, x: Tensor) -> Tensor:
        """Squeeze, and convolve along the channels: (B, C, 1, 1)."""
        y: Tensor = x.mean((2, 3)).unsqueeze(1)
        padding: int = getattr(self, "padding", 0)  # around the circle of channels
        y = F.pad(y, (padding, padding), mode="circular") if padding else y
        for name in self.chain:
            layer = getattr(self, name, None)
            y = y if layer is None else layer(y)
        return y.view(len(x), -1, 1, 1)


class _Pooling(Counterpart, Site):
    """A pooling by maxima, means or both: of a maximum the winner takes all.

    A maximum is one of its inputs, so its gradient conserves relevance as that of a mean does.
    """

    kind = "pooling"

    def plain(self, x: Tensor) -> Any:
        """Pool."""
        return super(Site, self).forward(x)


class _GatedMlp(Counterpart):
    """An MLP whose hidden layer is half gate, half signal."""

    fc1: nn.Module
    act: nn.Module
    drop1: nn.Module
    norm: nn.Module
    fc2: nn.Module
    drop2: nn.Module
    chunk_dim: int
    gate_last: bool

    def settle(self) -> None:
        """Add the product."""
        self.product = Gate()

    def forward(self, x: Tensor) -> Any:
        """(..., C) to (..., D)."""
        first, second = self.fc1(x).chunk(2, dim=self.chunk_dim)
        signal, gate = (first, second) if self.gate_last else (second, first)
        return self._finished(self.product(signal, self.act(gate)))

    def _finished(self, x: Tensor) -> Any:
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


class _SplitGatedMlp(_GatedMlp):
    """The same with a layer for each half."""

    fc1_g: nn.Module
    fc1_x: nn.Module

    def forward(self, x: Tensor) -> Any:
        """(..., C) to (..., D)."""
        return self._finished(self.product(self.fc1_x(x), self.act(self.fc1_g(x))))


class _LayerScale(Counterpart):
    """A factor for every channel, which never writes over its input."""

    gamma: Tensor
    shape: tuple[int, ...] = (-1,)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels."""
        return x * frozen(self.gamma).view(self.shape)


class _LayerScale2d(_LayerScale):
    shape = (-1, 1, 1)


_POOL = "timm.layers.adaptive_avgmax_pool."

TABLE: Table = {
    "timm.layers.squeeze_excite.SEModule": _Excitation,
    "timm.layers.squeeze_excite.EffectiveSEModule": _EffectiveExcitation,
    "timm.layers.squeeze_excite.SqueezeExciteCl": _ExcitationLast,
    "timm.models._efficientnet_blocks.SqueezeExcite": _EfficientExcitation,
    "timm.layers.eca.EcaModule": _ChannelConvolution,
    "timm.layers.eca.CecaModule": _ChannelConvolution,
    "torch.nn.modules.pooling.MaxPool2d": _Pooling,
    "torch.nn.modules.pooling.AdaptiveMaxPool2d": _Pooling,
    "torch.nn.modules.pooling.AdaptiveAvgPool2d": _Pooling,
    "timm.layers.pool2d_same.MaxPool2dSame": _Pooling,
    f"{_POOL}FastAdaptiveMaxPool": _Pooling,
    f"{_POOL}FastAdaptiveAvgMaxPool": _Pooling,
    f"{_POOL}FastAdaptiveCatAvgMaxPool": _Pooling,
    f"{_POOL}AdaptiveAvgMaxPool2d": _Pooling,
    f"{_POOL}AdaptiveCatAvgMaxPool2d": _Pooling,
    "timm.layers.mlp.GluMlp": _GatedMlp,
    "timm.layers.mlp.SwiGLU": _SplitGatedMlp,
    "timm.layers.layer_scale.LayerScale": _LayerScale,
    "timm.layers.layer_scale.LayerScale2d": _LayerScale2d,
}
