"""Sites that compute W x + b: linear layers and convolutions."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from torch import Tensor, nn

from vimlrp.kernels.products import input_linear, is_fast, linear
from vimlrp.sites.base import Site

__all__ = ["AffineSite", "CausalConv1d", "CentredConv1d", "Conv2d", "Linear", "PatchEmbedding"]


class AffineSite(Site):
    """W x + b for some linear map W: what the affine rules need to know of a layer."""

    weight: Tensor
    bias: Tensor | None

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the linear map with another weight and no bias."""
        raise NotImplementedError

    def rows(self, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002 (a site may ask its size)
        """Arrange the values of x, and zeros, as `product` reads them best.

        Rules that apply several weights arrange once. A function of each value that keeps 0, such
        as the magnitude, may be applied to the result as well as to x.
        """
        return x

    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Apply the linear map with another weight to what `rows` returned."""
        return self.linear(rows, weight)

    def constants(self) -> tuple[Tensor, Tensor | None]:
        """W for `linear`, and b as it is added to the output, both without a gradient."""
        bias = None if self.bias is None else self.broadcast(self.bias.detach())
        return self.weight.detach(), bias

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
        return input_linear(x, weight)

    def plain(self, x: Tensor) -> Tensor:
        """Compute W x + b in one call."""
        return linear(x, self.weight, self.bias)

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


class Conv2d(AffineSite):
    """Convolution of maps that keep their channels last, as sequences do.

    Args:
        in_chans: Channels C of the input.
        out_chans: Channels D of the output.
        kernel: Side of the window.
        stride: Distance between windows.
        padding: Rows and columns of zeros on every side.
        groups: 1 for a full convolution, `in_chans` for a depthwise one.
        bias: Whether to add a bias.
    """

    kind = "convolution"

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.groups = stride, padding, groups
        self.weight = nn.Parameter(torch.empty(out_chans, in_chans // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(out_chans)) if bias else None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, H, W, C) to (B, h, w, D)."""
        return self.product(self.rows(x, weight), weight)

    def rows(self, x: Tensor, weight: Tensor) -> Tensor:
        """Windows side by side, (B, h, w, C k k), where one product of them is faster.

        A convolution arranges its weights anew at every call, and this the windows.
        """
        windows = x.shape[0] * x.shape[1] * x.shape[2] // self.stride**2
        side = weight.shape[-1]
        if self.groups > 1 or side == 1 or windows >= len(weight) or not is_fast(x, weight):
            return x
        options = {"padding": self.padding, "stride": self.stride}
        columns = F.unfold(x.permute(0, 3, 1, 2), weight.shape[2:], **options)  # (B, C k k, h w)
        height = (x.shape[1] + 2 * self.padding - weight.shape[2]) // self.stride + 1
        return columns.mT.contiguous().unflatten(1, (height, -1))

    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(B, h, w, C k k), or the map as it is, to (B, h, w, D)."""
        return self._product(rows, weight, None)

    def plain(self, x: Tensor) -> Tensor:
        """Compute W x + b in one call."""
        return self._product(self.rows(x, self.weight), self.weight, self.bias)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.shape[-1] > 1 and self.groups == 1 and x.shape[-1] == weight[0].numel():
            return input_linear(x, weight.flatten(1), bias)
        # The permuted view is PyTorch's channels-last layout, so nothing is copied.
        options = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, **options).permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        """Say the sizes."""
        out_chans, chans, kernel, _ = self.weight.shape
        return (
            f"{chans * self.groups}, {out_chans}, kernel={kernel}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, bias={self.bias is not None}"
        )


class CentredConv1d(AffineSite):
    """Depthwise convolution along the sequence that sees both sides, channels last, without bias.

    Output t sees inputs t - (width - 1) // 2 to t + width // 2, zeros beyond the ends.

    Args:
        dim: Channels D.
        width: Taps.
    """

    kind = "convolution"

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, width))
        self.bias = None
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(..., L, D) to (..., L, D)."""
        width, length = weight.shape[-1], x.shape[-2]
        x = F.pad(x, (0, 0, (width - 1) // 2, width // 2))  # (..., L + width - 1, D)
        out = x[..., :length, :] * weight[:, 0, 0]
        for tap in range(1, width):
            out = out + x[..., tap : tap + length, :] * weight[:, 0, tap]
        return out

    def extra_repr(self) -> str:
        """Say the sizes."""
        dim, _, width = self.weight.shape
        return f"{dim}, width={width}"


class PatchEmbedding(AffineSite):
    """The first convolution, on pixels: it cuts an image into patches, or begins a stem that does.

    Args:
        in_chans: Channels of the image.
        embed_dim: Channels D of a patch.
        kernel: Side of a patch in pixels; patches overlap where it is larger than the stride.
        stride: Distance between patches in pixels.
        padding: Rows and columns of zeros around the image.
        bias: Whether to add a bias.
        cells: Outputs along each side that belong to one patch of the model's first grid, where
            later layers of a stem make it coarser; `Relevance.patches` sums over them.
    """

    kind = "patch_embedding"

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        kernel: int,
        stride: int,
        padding: int = 0,
        bias: bool = True,
        cells: int = 1,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.cells = stride, padding, cells
        self.weight = nn.Parameter(torch.empty(embed_dim, in_chans, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(embed_dim)) if bias else None
        nn.init.normal_(self.weight, std=math.sqrt(1 / (in_chans * kernel**2)))

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, h, w)."""
        return self.product(self.rows(x, weight), weight)

    def rows(self, x: Tensor, weight: Tensor) -> Tensor:
        """Patches that touch as rows of a matrix, (B, h, w, C k k): such products are faster."""
        side = weight.shape[-1]
        if not self._touch(side):
            # On a CPU the result then has its channels side by side, as all that follows reads it.
            return x if x.is_cuda else x.contiguous(memory_format=torch.channels_last)
        x = x[..., : x.shape[-2] // side * side, : x.shape[-1] // side * side]
        return rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=side, q=side)

    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(B, h, w, C k k), or the image as it is, to (B, D, h, w)."""
        if not self._touch(weight.shape[-1]):
            return F.conv2d(rows, weight, stride=self.stride, padding=self.padding)
        return input_linear(rows, weight.flatten(1)).permute(0, 3, 1, 2)

    def _touch(self, side: int) -> bool:
        return not self.padding and self.stride == side

    def broadcast(self, bias: Tensor) -> Tensor:
        """(D,) to (D, 1, 1)."""
        return bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Say the sizes."""
        dim, chans, kernel, _ = self.weight.shape
        return f"{chans}, {dim}, kernel={kernel}, stride={self.stride}, padding={self.padding}"
