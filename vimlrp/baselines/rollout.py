"""Raw attention, attention rollout and Mamba attribution, for Vim and for VMamba.

Ali, Zimerman and Wolf, ACL 2025, https://arxiv.org/abs/2403.01590, sections 3.2, 3.3 and 4.2. Where
the text and the authors' code differ, the text is followed: whole matrices and not the class
token's row in the place of every row, no min-max scaling, no division by row sums that may be zero
or negative.

The paper reads off the row of the class token. In general that is the row of the pooling: what the
classifier reads is a weighted sum of tokens, the class token alone, two of them, or the mean over a
Vim's sequence or a VMamba's map. VMamba adds two things: the attention of its four routes is
summed, as the paper sums both directions of Vim, and where a map is made coarser, what a cell
collected is shared out among the cells that it was made from, in equal parts.

All layers of Vim are rolled out, as in the paper's equations; its authors evaluate Vim-small from
layer 15 of 24 on, which is `start=15 / 24`. In VMamba the first two of four stages are left out,
whose sequences of 3,136 and 784 tokens would take a matrix of that side for every image.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.baselines.chunks import in_chunks
from vimlrp.baselines.mixers import Layer, count_entries, run_mixers, scanned
from vimlrp.errors import UnsupportedModelError
from vimlrp.models import VisionMamba, VMamba

__all__ = ["attention_rollout", "mamba_attribution", "raw_attention"]

_BATCH = 16
_MOST = 1 << 26
"""Entries that the matrices kept of one pass may have: 256 MiB in float32."""

Family = VisionMamba | VMamba
Step = Callable[[Layer], Tensor]


def raw_attention(
    model: nn.Module, x: Tensor, target: Tensor, *, start: float | None = None
) -> Tensor:
    """What the classifier's tokens attend to, the mean over layers.

    Args:
        model: A Vim or a VMamba.
        x: (B, 3, H, W).
        target: Not used: the map is the same for every class.
        start: The share of a Vim's blocks, or of a VMamba's stages, that is left out; None for
            0 and 2 / 4.

    Returns:
        (B, H, W).
    """
    return _maps(_raw, False, model, x, target, start)


def attention_rollout(
    model: nn.Module, x: Tensor, target: Tensor, *, start: float | None = None
) -> Tensor:
    """The pooling's row of the product of I + alpha over the layers, equations 20 and 21.

    Args:
        model: A Vim or a VMamba.
        x: (B, 3, H, W).
        target: Not used: the map is the same for every class.
        start: As for `raw_attention`.

    Returns:
        (B, H, W), each map up to a positive factor.
    """
    return _maps(partial(_rolled, lambda layer: layer.attention), False, model, x, target, start)


def mamba_attribution(
    model: nn.Module, x: Tensor, target: Tensor, *, start: float | None = None
) -> Tensor:
    """The rollout of I + (slope * alpha)+, equation 23.

    The slope is the gradient of the target's logit, its mean over channels: a number a token. It
    weighs the tokens that alpha collects from, its columns, and is taken where they enter the
    block, as in the authors' code, which is the output of the mixer below. At a mixer's own output
    a token that no later layer reads would have none, and the last layer no part in the map.

    Args:
        model: A Vim or a VMamba.
        x: (B, 3, H, W).
        target: (B,).
        start: As for `raw_attention`.

    Returns:
        Not negative, (B, H, W), each map up to a positive factor.
    """
    return _maps(partial(_rolled, _weighed), True, model, x, target, start)


def _maps(
    combine: Callable[[Family, Tensor, list[Layer]], Tensor],
    slopes: bool,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    start: float | None,
) -> Tensor:
    """Combine the layers' attention into shares of cells, and draw those over the pixels."""
    own = scanned(model)
    if own is None:
        raise UnsupportedModelError(f"a {type(model).__name__} has no hidden attention")
    first = (0.0 if isinstance(own, VisionMamba) else 0.5) if start is None else start

    def maps(_: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        layers = run_mixers(own, images, classes, first, slopes)
        cells = combine(own, images, layers)
        sides = images.shape[2:]
        return F.interpolate(cells.unsqueeze(1), sides, mode="bilinear").squeeze(1)

    entries = count_entries(own, x, first)
    return in_chunks(maps, own, x, target, max(1, min(_BATCH, _MOST // entries)))


def _raw(model: Family, x: Tensor, layers: list[Layer]) -> Tensor:
    rows = [_row(_pooling(model, x, layer), layer.attention) for layer in layers]
    finest = layers[0].grid
    cells = [
        _cells(model, x, _spread(row, layer.grid, finest), finest)
        for row, layer in zip(rows, layers, strict=True)
    ]
    return torch.stack(cells).mean(0)


def _rolled(step: Step, model: Family, x: Tensor, layers: list[Layer]) -> Tensor:
    """Go from the pooling's row back through the layers, so that no product of matrices is made."""
    grid = layers[-1].grid
    row = _pooling(model, x, layers[-1])
    for layer in reversed(layers):
        row = _spread(row, grid, layer.grid)
        row = row + _row(row, step(layer))
        row = row / row.abs().amax(1, keepdim=True)  # alpha has no bound, nor its product
        grid = layer.grid
    return _cells(model, x, row, grid)


def _weighed(layer: Layer) -> Tensor:
    if layer.slope is None:
        return layer.attention
    return (layer.slope.unsqueeze(1) * layer.attention).clamp(min=0)


def _row(row: Tensor, matrix: Tensor) -> Tensor:
    """(B, L) times (B, L, L)."""
    return (row.unsqueeze(1) @ matrix).squeeze(1)


def _pooling(model: Family, x: Tensor, layer: Layer) -> Tensor:
    """The weights of the tokens in what the classifier reads, (B, L)."""
    weights = torch.ones_like(layer.attention[:, 0])
    if isinstance(model, VisionMamba) and model.global_pool == "token":
        weights.zero_()
        weights[:, list(model.layout_of(x).special)] = 1
    return weights / weights.sum(1, keepdim=True)


def _cells(model: Family, x: Tensor, row: Tensor, grid: tuple[int, int]) -> Tensor:
    """The shares of the patches, (B, L) to (B, h, w)."""
    row = model.layout_of(x).patches_of(row) if isinstance(model, VisionMamba) else row
    return row.unflatten(1, grid)


def _spread(row: Tensor, coarse: tuple[int, int], fine: tuple[int, int]) -> Tensor:
    """Share what every cell of one grid has among those of a finer grid below it."""
    if coarse == fine:
        return row
    down, across = (
        torch.arange(f, device=row.device) * c // f for f, c in zip(fine, coarse, strict=True)
    )
    parent = (down[:, None] * coarse[1] + across).flatten()
    return row[:, parent] / torch.bincount(parent, minlength=row.shape[1])[parent]
