"""Counterparts of element-wise non-linearities f with f(0) = 0, which have a ratio f(x) / x."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.sites import Activation
from vimlrp.wrapping.cloning import Counterpart, Table

__all__ = ["TABLE"]


class _Activation(Counterpart, Activation):
    """An activation that never writes over its input."""

    function = "relu"

    def settle(self) -> None:
        """Look up f and its ratio."""
        self.name = self.function
        self._function, self._ratio = self._pair()

    def _pair(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        same = Activation(self.function)
        return same.plain, same.ratio


class _Silu(_Activation):
    function = "silu"


class _Gelu(_Activation):
    function = "gelu"
    approximate: Any

    def settle(self) -> None:
        """Take the approximation by a tanh where the module does."""
        if getattr(self, "approximate", "none") == "tanh":
            self.function = "gelu_tanh"
        super().settle()


class _GeluTanh(_Activation):
    function = "gelu_tanh"


class _OwnRatio(_Activation):
    """One that `vimlrp.sites.Activation` does not know."""

    def _pair(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        return self._times_ratio, self.quotient

    def _times_ratio(self, x: Tensor) -> Tensor:
        return x * self.quotient(x)

    def quotient(self, x: Tensor) -> Tensor:
        """f(x) / x in closed form."""
        raise NotImplementedError


class _Hardswish(_OwnRatio):
    """x relu6(x + 3) / 6, Howard et al. 2019."""

    function = "hardswish"

    def quotient(self, x: Tensor) -> Tensor:
        """The piecewise linear sigmoid."""
        return F.hardsigmoid(x)


class _QuickGelu(_OwnRatio):
    """x sigmoid(1.702 x), Hendrycks and Gimpel 2016."""

    function = "quick_gelu"

    def quotient(self, x: Tensor) -> Tensor:
        """The sigmoid."""
        return torch.sigmoid(1.702 * x)


class _Mish(_OwnRatio):
    """x tanh(softplus(x)), Misra 2019."""

    function = "mish"

    def quotient(self, x: Tensor) -> Tensor:
        """The tanh."""
        return torch.tanh(F.softplus(x))


class _Relu6(_OwnRatio):
    """min(max(x, 0), 6)."""

    function = "relu6"

    def quotient(self, x: Tensor) -> Tensor:
        """1 up to 6, and 6 / x from there; as the gradient of ReLU, 0 at 0."""
        return (x > 0).to(x.dtype) * 6 / x.clamp(min=6)

    def _times_ratio(self, x: Tensor) -> Tensor:
        return F.relu6(x)


class _LeakyRelu(_OwnRatio):
    """x where positive, a fixed part of x elsewhere."""

    function = "leaky_relu"
    negative_slope: float

    def quotient(self, x: Tensor) -> Tensor:
        """1 or the slope."""
        return torch.ones_like(x).masked_fill_(x <= 0, self.negative_slope)


class _Tanh(_OwnRatio):
    """tanh(x)."""

    function = "tanh"

    def quotient(self, x: Tensor) -> Tensor:
        """tanh(x) / x, 1 at 0."""
        tiny = x.abs() < math.sqrt(torch.finfo(x.dtype).tiny)
        return torch.where(tiny, 1.0, torch.tanh(x) / x.masked_fill(tiny, 1.0)).to(x.dtype)

    def _times_ratio(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


_TORCH, _TIMM = "torch.nn.modules.activation.", "timm.layers.activations."

TABLE: Table = {
    f"{_TORCH}ReLU": _Activation,
    f"{_TORCH}SiLU": _Silu,
    f"{_TORCH}GELU": _Gelu,
    f"{_TORCH}Hardswish": _Hardswish,
    f"{_TORCH}Mish": _Mish,
    f"{_TORCH}ReLU6": _Relu6,
    f"{_TORCH}LeakyReLU": _LeakyRelu,
    f"{_TORCH}Tanh": _Tanh,
    f"{_TIMM}Swish": _Silu,
    f"{_TIMM}GELU": _Gelu,
    f"{_TIMM}GELUTanh": _GeluTanh,
    f"{_TIMM}QuickGELU": _QuickGelu,
    f"{_TIMM}HardSwish": _Hardswish,
    f"{_TIMM}Mish": _Mish,
    f"{_TIMM}Tanh": _Tanh,
    "timm.layers.activations_me.HardSwishMe": _Hardswish,
    "timm.layers.activations_me.MishMe": _Mish,
    "timm.layers.activations_me.SwishMe": _Silu,
}
