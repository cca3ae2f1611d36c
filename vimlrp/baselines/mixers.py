"""One pass through a Vim or a VMamba that keeps the hidden attention of its mixers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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

__all__ = ["SCANNED", "Layer", "run_mixers", "scanned"]


@dataclass(frozen=True)
class Layer:
    """What is kept of one mixer.

    Args:
        attention: The mean over channels, (B, L, L), without a gradient.
        grid: Rows and columns of its tokens, class tokens aside.
        slope: The gradient of the target's logit at the mixer's output, its mean over channels,
            (B, L); None where it was not asked for.
    """

    attention: Tensor
    grid: tuple[int, int]
    slope: Tensor | None = None


def scanned(model: nn.Module) -> VisionMamba | VMamba | None:
    """The model, or its counterpart if it is official; None if it is no Vim and no VMamba."""
    try:
        own = wrap(model)
    except UnsupportedModelError:
        return None
    return own if isinstance(own, VisionMamba | VMamba) else None


SCANNED = Models("a Vim or a VMamba", lambda model: scanned(model) is not None)


def run_mixers(
    model: VisionMamba | VMamba, x: Tensor, target: Tensor, start: float, slopes: bool
) -> list[Layer]:
    """Run a model and keep its later mixers.

    Args:
        model: Built from sites.
        x: (B, 3, H, W).
        target: (B,).
        start: Where to begin: the share of a Vim's blocks, or of a VMamba's stages, left out.
        slopes: Whether the gradients at the mixers' outputs are wanted.

    Returns:
        The layers from the input to the output.

    Raises:
        InputError: If `start` leaves nothing.
    """
    if not 0 <= start < 1:
        raise InputError(f"start is {start}; give a share of the depth from 0 to below 1")
    watcher = _Watcher(_mixers(model, start))
    with explaining(model, x, Composite("gradient_x_input"), watcher) as trace:
        trace.fuse = False  # a fused block has no scan to look at
        with torch.set_grad_enabled(slopes):
            value = TargetLogit(model)(x, target)
        outputs = watcher.outputs
        found = torch.autograd.grad(value.sum(), outputs) if slopes else [None] * len(outputs)
    token_grid = model.layout_of(x).grid if isinstance(model, VisionMamba) else None
    return [
        Layer(attention, token_grid or (out.shape[1], out.shape[2]), _mean_slope(slope))
        for attention, out, slope in zip(watcher.attentions, outputs, found, strict=True)
    ]


def _mean_slope(slope: Tensor | None) -> Tensor | None:
    """(B, L, C) or (B, h, w, C) to (B, L)."""
    return None if slope is None else slope.mean(-1).flatten(1)


@dataclass
class _Watcher:
    """Looks on while the mixers run.

    Args:
        mixers: Those to keep.
    """

    mixers: Sequence[Any]
    attentions: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)  # (B, L, C) or (B, h, w, C)

    def visit(self, site: nn.Module, rule: Rule, args: tuple[Any, ...]) -> Any:
        """Run a site; keep the attention of a scan, and the output of a mixer's last layer."""
        out = rule.run(site, *args)
        if isinstance(site, Scan) and any(site is mixer.scan for mixer in self.mixers):
            self.attentions.append(_attention(site, *args))
        elif any(site is mixer.out_proj for mixer in self.mixers):
            self.outputs.append(out)
        return out

    def constant(self, x: Tensor) -> Tensor:
        """Detach."""
        return x.detach()


@torch.no_grad()
def _attention(site: Scan, u: Tensor, *args: Any) -> Tensor:
    dt, A, B, C, _, *order = args
    return mean_attention(dt, A, B, C, order[0] if order else site.order)


def _mixers(model: VisionMamba | VMamba, start: float) -> list[Any]:
    parts: list[Any] = list(model.layers)
    kept = parts[int(start * len(parts)) :]
    if isinstance(model, VisionMamba):
        return [block.mixer for block in kept]
    return [block.op for stage in kept for block in stage.blocks]
