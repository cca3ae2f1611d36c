"""Counterparts of blocks of the families resnet, mambaout and efficientvim."""

from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.sites import Gate, Residual, Site
from vimlrp.tracing import constant, frozen
from vimlrp.wrapping.cloning import Counterpart, Table

__all__ = ["TABLE"]


class _ResidualBlock(Counterpart):
    """A chain of layers, the sum with a shortcut, and an activation (He et al. 2016).

    `chain` names the layers in the order in which they run, `last` the activation; what a block
    lacks is left out. The original adds in place.
    """

    chain: tuple[str, ...] = ()
    last = ""
    downsample: nn.Module | None

    def settle(self) -> None:
        """Add the sum."""
        self.residual = Residual()

    def forward(self, x: Tensor) -> Any:
        """(B, C, H, W) to (B, D, h, w)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for name in self.chain:
            layer = getattr(self, name, None)
            x = x if layer is None else layer(x)
        return getattr(self, self.last)(self.residual(shortcut, x))


class _BasicBlock(_ResidualBlock):
    chain = ("conv1", "bn1", "drop_block", "act1", "aa", "conv2", "bn2", "se", "drop_path")
    last = "act2"


class _Bottleneck(_ResidualBlock):
    chain = (
        *("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa"),
        *("conv3", "bn3", "se", "drop_path"),
    )
    last = "act3"


class _TorchvisionBasicBlock(_ResidualBlock):
    chain = ("conv1", "bn1", "relu", "conv2", "bn2")
    last = "relu"


class _TorchvisionBottleneck(_ResidualBlock):
    chain = ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3")
    last = "relu"


class _GatedConvBlock(Counterpart):
    """MambaOut's block: a gated MLP with a convolution in its signal (Yu and Wang 2024).

    https://arxiv.org/abs/2405.07992.
    """

    norm: nn.Module
    fc1: nn.Module
    act: nn.Module
    conv: nn.Module
    fc2: nn.Module
    ls: nn.Module
    drop_path: nn.Module
    split_indices: tuple[int, ...]

    def settle(self) -> None:
        """Add the product and the sum."""
        self.product, self.residual = Gate(), Residual()

    def forward(self, x: Tensor) -> Any:
        """(B, H, W, C) to the same."""
        gate, passed, mixed = self.fc1(self.norm(x)).split(self.split_indices, dim=-1)
        mixed = self.conv(mixed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        signal = torch.cat((passed, mixed), dim=-1)
        branch = self.fc2(self.product(signal, self.act(gate)))
        return self.residual(x, self.drop_path(self.ls(branch)))


class _StateScan(Site):
    """The sums of the hidden-state mixer, with factors that depend on the input.

    Lee et al. 2025, https://arxiv.org/abs/2411.15241, equations 5 to 7: h = [softmax(dt + A) B] x
    gathers the states, y = [C] h reads them. As in the selective scan (MambaLRP, equations 5 to
    7) the factors are constants.
    """

    kind = "scan"

    def scan(self, x: Tensor, *factors: Tensor, grad: tuple[str, ...]) -> Tensor:
        """Run the sum with the gradient of the factors named."""
        raise NotImplementedError

    def plain(self, x: Tensor, *factors: Tensor) -> Tensor:
        """Run the sum."""
        return self.scan(x, *factors, grad=("u", "A", "B", "C"))


def _held(factor: Tensor, name: str, grad: tuple[str, ...]) -> Tensor:
    return factor if name in grad else constant(factor)


class _Gather(_StateScan):
    def scan(self, x: Tensor, *factors: Tensor, grad: tuple[str, ...]) -> Tensor:
        """Gather states: x (B, D, L), dt + A (B, N, L) and B (B, N, L) to (B, D, N)."""
        step, weight = factors
        weight = _held(step.softmax(-1), "A", grad) * _held(weight, "B", grad)
        return x @ weight.mT


class _Read(_StateScan):
    def scan(self, x: Tensor, *factors: Tensor, grad: tuple[str, ...]) -> Tensor:
        """Read states: h (B, D, N) and C (B, N, L) to (B, D, L)."""
        return x @ _held(factors[0], "C", grad)


class _HiddenStateMixer(Counterpart):
    """EfficientViM's mixer: states gathered from all places, mixed, gated, and read back."""

    BCdt_proj: nn.Module
    dw: nn.Module
    hz_proj: nn.Module
    out_proj: nn.Module
    act: nn.Module
    A: Tensor
    D: Tensor

    def settle(self) -> None:
        """Add the sums and the product."""
        self.gather, self.read, self.product = _Gather(), _Read(), Gate()

    def forward(self, x: Tensor) -> tuple[Any, Any]:
        """(B, D, H, W) to the same, and the states (B, D, N)."""
        height, width = x.shape[-2:]
        x = x.flatten(2)  # (B, D, L)
        factors = self.dw(self.BCdt_proj(x).unflatten(-1, (height, width))).flatten(2)
        b, c, dt = factors.chunk(3, dim=1)
        states = self.gather(x, dt + frozen(self.A).view(1, -1, 1), b)
        h, z = self.hz_proj(states).chunk(2, dim=1)
        h = self.out_proj(self.product(h, self.act(z)) + h * frozen(self.D))
        return self.read(h, c).unflatten(-1, (height, width)), h


TABLE: Table = {
    "timm.models.resnet.BasicBlock": _BasicBlock,
    "timm.models.resnet.Bottleneck": _Bottleneck,
    "torchvision.models.resnet.BasicBlock": _TorchvisionBasicBlock,
    "torchvision.models.resnet.Bottleneck": _TorchvisionBottleneck,
    "timm.models.mambaout.GatedConvBlock": _GatedConvBlock,
    "timm.models.efficientvim.HSMSSD": _HiddenStateMixer,
}
