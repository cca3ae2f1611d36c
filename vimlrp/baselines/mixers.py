"""One pass through a Vim or a VMamba that keeps the hidden attention of its mixers."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vimlrp.baselines.contract import Models
from vimlrp.baselines.frozen import TargetLogit
from vimlrp.baselines.hidden_attention import mean_attention
from vimlrp.composites import Composite
from vimlrp.engine import explaining
from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.models import VisionMamba, VMamba
from vimlrp.rules import Rule
from vimlrp.sites import Scan
from vimlrp.wrapping import wrap

__all__ = ["SCANNED", "Layer", "count_entries", "run_mixers", "scanned"]


@dataclass(frozen=True)
class Layer:
    """What is kept of one mixer.

    Args:
        attention: The mean over channels, (B, L, L), without a gradient.
        grid: Rows and columns of its tokens, class tokens aside.
        slope: The gradient of the target's logit at the stream that the block reads, its mean over
            channels, (B, L); None where it was not asked for.
    """

    attention: Tensor
    grid: tuple[int, int]
    slope: Tensor | None = None


class _Block(NamedTuple):
    """The sites of a block to look at: what reads the stream, and the mixer's scan."""

    norm: nn.Module
    scan: nn.Module


def scanned(model: nn.Module) -> VisionMamba | VMamba | None:
    """The model, or its counterpart if it is official; None if it is no Vim and no VMamba."""
    try:
        own = wrap(model)
    except UnsupportedModelError:
        return None
    return own if isinstance(own, VisionMamba | VMamba) else None


SCANNED = Models("a Vim or a VMamba", lambda model: scanned(model) is not None)


def count_entries(model: VisionMamba | VMamba, x: Tensor, start: float) -> int:
    """How many entries the matrices of one image have that `run_mixers` keeps.

    Args:
        model: Built from sites.
        x: (B, 3, H, W).
        start: As there.
    """
    first = _first(model, start)
    if isinstance(model, VisionMamba):
        return (len(model.layers) - first) * model.layout_of(x).length ** 2
    parts: list[Any] = list(zip(model.feature_info, model.layers, strict=True))[first:]
    return sum(
        len(stage.blocks) * prod(ceil(side / info["reduction"]) for side in x.shape[2:]) ** 2
        for info, stage in parts
    )


def run_mixers(
    model: VisionMamba | VMamba, x: Tensor, target: Tensor, start: float, slopes: bool
) -> list[Layer]:
    """Run a model and keep its later mixers.

    Args:
        model: Built from sites.
        x: (B, 3, H, W).
        target: (B,).
        start: Where to begin: the share of a Vim's blocks, or of a VMamba's stages, left out.
        slopes: Whether the gradients at the streams are wanted.

    Returns:
        The layers from the input to the output.

    Raises:
        InputError: If `start` leaves nothing.
    """
    watcher = _Watcher(_blocks(model, start))
    with explaining(model, x, Composite("gradient_x_input"), watcher) as trace:
        trace.fuse = False  # a fused block has no scan to look at
        with torch.set_grad_enabled(slopes):
            value = TargetLogit(model)(x, target)
        streams = watcher.streams
        found = torch.autograd.grad(value.sum(), streams) if slopes else [None] * len(streams)
    tokens = model.layout_of(x).grid if isinstance(model, VisionMamba) else None
    return [
        Layer(attention, tokens or (stream.shape[1], stream.shape[2]), _mean_slope(slope))
        for attention, stream, slope in zip(watcher.attentions, streams, found, strict=True)
    ]


def _mean_slope(slope: Tensor | None) -> Tensor | None:
    """(B, L, C) or (B, h, w, C) to (B, L)."""
    return None if slope is None else slope.mean(-1).flatten(1)


class _Watcher:
    """Looks on while the blocks run.

    Args:
        blocks: Those to keep.
    """

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self._norms = {block.norm for block in blocks}
        self._scans = {block.scan for block in blocks}
        self.streams: list[Tensor] = []  # (B, L, C) or (B, h, w, C)
        self.attentions: list[Tensor] = []

    def visit(self, site: nn.Module, rule: Rule, args: tuple[Any, ...]) -> Any:
        """Run a site; keep the stream that a block's norm is given, and a scan's attention."""
        if site in self._norms:
            self.streams.append(args[0])
        elif isinstance(site, Scan) and site in self._scans:
            self.attentions.append(_attention(site, args))
        return rule.run(site, *args)

    def constant(self, x: Tensor) -> Tensor:
        """Detach."""
        return x.detach()


@torch.no_grad()
def _attention(site: Scan, args: tuple[Any, ...]) -> Tensor:
    _, dt, A, B, C, _, *order = args
    routes: Any = order[0] if order else site.order
    return mean_attention(dt, A, B, C, routes)


def _blocks(model: VisionMamba | VMamba, start: float) -> list[_Block]:
    parts: list[Any] = list(model.layers)
    kept = parts[_first(model, start) :]
    if isinstance(model, VisionMamba):
        return [_Block(block.norm, block.mixer.scan) for block in kept]
    return [_Block(block.norm, block.op.scan) for stage in kept for block in stage.blocks]


def _first(model: VisionMamba | VMamba, start: float) -> int:
    """The first block or stage to keep."""
    if not 0 <= start < 1:
        raise InputError(f"start is {start}; give a share of the depth from 0 to below 1")
    return int(start * len(model.layers))
