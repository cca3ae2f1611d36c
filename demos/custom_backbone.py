"""A backbone of one's own, explained: Mamba blocks whose scans follow any table of orders.

python demos/custom_backbone.py [PHOTO] [--order zigzag|windows|cross]

The model is untrained: what it shows is how little a new backbone needs. It is built from sites,
so every operation has a rule, and its scan orders are data; docs/extending.md goes through it.
Without an argument it takes the photograph of a palace that scikit-learn carries.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files

import torch
from torch import Tensor, nn

import vimlrp
from vimlrp.kernels import ScanOrder
from vimlrp.models.initial import init_step, initial_a_log
from vimlrp.sites import (
    Activation,
    Conv2d,
    Gate,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Residual,
    Scan,
    Step,
    TokenSum,
)
from vimlrp.tokens import TokenLayout

Order = Callable[[int, int], ScanOrder]

ORDERS: dict[str, Order] = {
    "zigzag": ScanOrder.zigzag,
    "windows": lambda height, width: ScanOrder.windows(height, width, window=7),
    "cross": ScanOrder.cross,
}
"""Grid (rows, columns) to the paths over it: a new path is a new entry."""


class Mixer(nn.Module):
    """Selective scans along every path of an order, summed, behind a gate.

    Args:
        dim: Width D.
        order: The paths over the grid.
        states: Size N of the state of each channel.
    """

    def __init__(self, dim: int, order: ScanOrder, states: int = 8) -> None:
        super().__init__()
        inner, rank = 2 * dim, dim // 16
        self.sizes = (rank, states, states)
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.conv = Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.act = Activation("silu")
        self.x_proj = Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = Linear(rank, inner)
        self.step = Step()
        self.A_log = nn.Parameter(initial_a_log(inner, states))
        self.D = nn.Parameter(torch.ones(inner))
        self.scan = Scan(order)
        self.gate_act = Activation("silu")
        self.gate = Gate()
        self.out_proj = Linear(inner, dim, bias=False)
        init_step(self.dt_proj)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, D) on a grid of L cells to (B, L, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, L, E) each
        u = self.act(self.conv(x.unflatten(1, grid)).flatten(1, 2))
        y = self.scan(u, *self.scan_parameters(u)).sum(dim=1)  # (B, L, E)
        return self.out_proj(self.gate(y, self.gate_act(z)))

    def scan_parameters(self, u: Tensor) -> tuple[Tensor, ...]:
        """Dt (B, K, L, E), A (K, E, N), B and C (B, K, L, N), D (K, E), the same on all K paths."""
        paths = self.scan.order.directions
        low, b, c = self.x_proj(self.scan.parameter_source(u)).split(self.sizes, dim=-1)
        dt, b, c = (x.unsqueeze(1).expand(-1, paths, -1, -1) for x in (self.dt_proj(low), b, c))
        a = -torch.exp(self.A_log).expand(paths, -1, -1)
        return self.step(dt), a, b, c, self.D.expand(paths, -1)


class Block(nn.Module):
    """Normalise, mix, add.

    Args:
        dim: Width D.
        order: The paths of the scans.
    """

    def __init__(self, dim: int, order: ScanOrder) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.mixer = Mixer(dim, order)
        self.residual = Residual()

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return self.residual(x, self.mixer(self.norm(x), grid))


class CustomBackbone(nn.Module):
    """Patches, position embedding, blocks at one resolution, the mean over the tokens.

    Args:
        order: Paths over the grid of patches.
        img_size: Side of the input in pixels.
        patch_size: Side of a patch in pixels.
        dim: Width D.
        depth: Number of blocks.
        num_classes: Size of the classifier.
    """

    def __init__(
        self,
        order: Order = ScanOrder.zigzag,
        img_size: int = 224,
        patch_size: int = 16,
        dim: int = 64,
        depth: int = 4,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        side = img_size // patch_size
        self.img_size, self.layout = (img_size, img_size), TokenLayout((side, side))
        self.patch_embed = PatchEmbedding(3, dim, patch_size, patch_size)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, self.layout.length, dim))
        self.token_sum = TokenSum()
        paths = order(side, side)
        self.blocks = nn.ModuleList(Block(dim, paths) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.head = Linear(dim, num_classes, kind="head")

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, L, D)
        x = self.token_sum(patches, patches[:, :0], self.pos_embed, self.layout)
        for block in self.blocks:
            x = block(x, self.layout.grid)
        return self.head(self.norm(x).mean(dim=1))

    def complete_cuts(self) -> tuple[str, ...]:
        """Modules whose outputs together carry all relevance, from input to output."""
        blocks = (f"blocks.{i}" for i in range(len(self.blocks)))
        return ("token_sum", *blocks, "norm", "head")


def explain(photo: str, order: str) -> None:
    """Explain a photograph with random weights, and print where the logit went."""
    torch.manual_seed(0)
    model = CustomBackbone(ORDERS[order]).eval()
    relevance = vimlrp.explain(model, photo)
    print(f"{photo}, scanned by {order}: {relevance}")
    print(relevance.account)
    print(vimlrp.check_conservation(model, photo))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photo", nargs="?")
    parser.add_argument("--order", choices=ORDERS, default="zigzag")
    options = parser.parse_args(arguments)
    with as_file(files("sklearn.datasets") / "images" / "china.jpg") as palace:
        explain(options.photo or str(palace), options.order)


if __name__ == "__main__":
    main()
