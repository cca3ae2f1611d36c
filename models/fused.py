"""A Vim block and its relevance as one operation: fewer kernels, less memory, the same numbers.

The composed block runs every site under its rule. Where the rules are those of MambaLRP (any gamma
in the convolution, any shares at the gate), the whole relevance pass of a block is known in closed
form; what it needs is kept, and what is cheaper to compute again than to keep is not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.kernels import ScanOrder, selective_scan, selective_scan_relevance
from vimlrp.kernels.fused import sequences
from vimlrp.kernels.products import product, product_each
from vimlrp.models.mixer import BidirectionalMixer
from vimlrp.rules import (
    ConstantFactors,
    ConstantNormaliser,
    Gamma,
    Gradient,
    Identity,
    Rule,
    Share,
    Zero,
)
from vimlrp.tracing import Absorption, Trace, active

if TYPE_CHECKING:
    from vimlrp.models.vim_blocks import Block

__all__ = ["Plan", "plans_of", "run"]


@dataclass(frozen=True)
class Plan:
    """What a fused block computes with: constants, and the rules' numbers.

    Args:
        norm: Weight of the RMSNorm, (D,).
        eps: Of the RMSNorm.
        in_proj: (2E, D).
        conv: Weights (2, E, W) and biases (2, E) of both directions.
        x_proj: (2, R + 2N, E), and rows of zeros after them.
        sizes: R, N, N and the number of rows after them.
        dt_proj: Weights (2, E, R) and biases (2, E).
        A: (2, E, N).
        D: (2, E).
        out_proj: (D, E).
        scale: Of the sum of both directions.
        gamma: Of the convolution's rule, 0 for LRP-0.
        share: Of the gate's rule: signal and gate.
    """

    norm: Tensor
    eps: float
    in_proj: Tensor
    conv: tuple[Tensor, Tensor]
    x_proj: Tensor
    sizes: tuple[int, int, int, int]
    dt_proj: tuple[Tensor, Tensor]
    A: Tensor
    D: Tensor
    out_proj: Tensor
    scale: float
    gamma: float
    share: tuple[float, float]

    def step(self, low: Tensor) -> Tensor:
        """Step (B, 2, L, E) out of its low-rank input (B, 2, L, R)."""
        return sequences.step(low, *self.dt_proj)


_ORDER = ScanOrder.bidirectional()
# Values of a branch up to which a batch is small: eight images of Vim-small.
_SMALL = 8 * 200 * 384
# On a GPU the projection has rows of zeros at its end, so that the rows of its result begin at
# multiples of these bytes and load in wide pieces.
_ALIGNMENT = 16
_REVERSE = _ORDER.reverse


def plans_of(blocks: Sequence["Block"]) -> list[Plan | None]:
    """The plans by which blocks can run as one operation each.

    Args:
        blocks: Of a Vim, inside an explanation or not.

    Returns:
        One for each block; None for a block that has to run by its sites.
    """
    trace = active()
    if trace is None or not trace.fuse or trace.watcher is not None or not _are_alike(blocks):
        return [None] * len(blocks)
    if torch.is_autocast_enabled(blocks[0].norm.weight.device.type):
        return [None] * len(blocks)
    numbers = [None if _is_watched(block) else _numbers(block, trace) for block in blocks]
    chosen = [block for block, found in zip(blocks, numbers, strict=True) if found is not None]
    constants = iter(_constants(chosen))
    return [
        None if found is None else _plan(block, next(constants), *found)
        for block, found in zip(blocks, numbers, strict=True)
    ]


def _are_alike(blocks: Sequence["Block"]) -> bool:
    """Whether all mixers are Vim's own and of one shape, so that their parameters stack."""
    mixers = [block.mixer for block in blocks]
    if not mixers or any(type(mixer) is not BidirectionalMixer for mixer in mixers):
        return False
    return len({(m.A_log.shape, m.rank, m.conv1d.weight.shape) for m in mixers}) == 1


def run(
    plan: Plan, block: "Block", hidden: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a block as one operation.

    Args:
        plan: Of the block.
        block: Is named in the account of what its biases take.
        hidden: The branch, (B, L, D).
        residual: The stream, (B, L, D), or None for the first block.

    Returns:
        The new branch and the new stream.
    """
    trace = active()
    ledger = [] if trace is None else trace.absorptions
    out: tuple[Tensor, Tensor] = _FusedBlock.apply(hidden, residual, plan, block, ledger)
    return out


def _is_watched(block: nn.Module) -> bool:
    """Whether something listens inside the block, which the fused path would leave out."""
    inner = (module for module in block.modules() if module is not block)
    return any(module._forward_hooks or module._forward_pre_hooks for module in inner)


def _numbers(block: "Block", trace: Trace) -> tuple[float, tuple[float, float]] | None:
    """Gamma and the gate's shares, if the block's rules are those that the fused path computes."""
    mixer = block.mixer
    fixed: dict[nn.Module, Rule] = {
        block.residual: Gradient(),
        block.norm: ConstantNormaliser(),
        mixer.in_proj: Zero(),
        mixer.act: Identity(),
        mixer.gate_act: Identity(),
        mixer.scan: ConstantFactors(),
        mixer.out_proj: Zero(),
    }
    if any(trace.rule_of(site) != rule for site, rule in fixed.items()):
        return None
    conv, other = (trace.rule_of(site) for site in (mixer.conv1d, mixer.conv1d_b))
    gate = trace.rule_of(mixer.gate)
    if conv != other or not isinstance(conv, Gamma | Zero) or not isinstance(gate, Share):
        return None
    return conv.gamma if isinstance(conv, Gamma) else 0.0, (gate.signal, gate.gate)


@dataclass(frozen=True)
class _Constants:
    """The parameters of both directions of a block; `Plan` says which."""

    conv: tuple[Tensor, Tensor]
    x_proj: Tensor
    dt_proj: tuple[Tensor, Tensor]
    A: Tensor
    D: Tensor


def _constants(blocks: Sequence["Block"]) -> Iterator[_Constants]:
    """Gather them for all blocks at once: on a GPU each gathering is a launch."""
    mixers = [block.mixer for block in blocks]
    if not mixers:
        return
    taps = _both(mixers, lambda m: (m.conv1d.weight, m.conv1d_b.weight))[:, :, :, 0]
    shifts = _both(mixers, lambda m: (m.conv1d.bias, m.conv1d_b.bias))
    x_proj = _both(mixers, lambda m: (m.x_proj.weight, m.x_proj_b.weight))
    if x_proj.is_cuda:
        x_proj = F.pad(x_proj, (0, 0, 0, -x_proj.shape[2] % (_ALIGNMENT // x_proj.element_size())))
    # Neighbouring channels side by side in memory, as the kernels load them.
    steps = _both(mixers, lambda m: (m.dt_proj.weight.t(), m.dt_proj_b.weight.t())).mT
    biases = _both(mixers, lambda m: (m.dt_proj.bias, m.dt_proj_b.bias))
    rates = -torch.exp(_both(mixers, lambda m: (m.A_log.t(), m.A_b_log.t()))).mT
    skips = _both(mixers, lambda m: (m.D, m.D_b))
    for i in range(len(mixers)):
        yield _Constants((taps[i], shifts[i]), x_proj[i], (steps[i], biases[i]), rates[i], skips[i])


def _both(
    mixers: Sequence[BidirectionalMixer],
    parameters: Callable[[BidirectionalMixer], tuple[Tensor | None, Tensor | None]],
) -> Tensor:
    """A parameter of both directions of all blocks, (M, 2, ...)."""
    pairs = [parameters(mixer) for mixer in mixers]
    values = [value.detach() for pair in pairs for value in pair if value is not None]
    return torch.stack(values).unflatten(0, (len(mixers), 2))


def _plan(block: "Block", both: _Constants, gamma: float, share: tuple[float, float]) -> Plan:
    mixer: BidirectionalMixer = block.mixer
    return Plan(
        norm=block.norm.weight.detach(),
        eps=block.norm.eps,
        in_proj=mixer.in_proj.weight.detach(),
        conv=both.conv,
        x_proj=both.x_proj,
        sizes=(mixer.rank, mixer.d_state, mixer.d_state, _padding(mixer, both.x_proj)),
        dt_proj=both.dt_proj,
        A=both.A,
        D=both.D,
        out_proj=mixer.out_proj.weight.detach(),
        scale=0.5 if mixer.divide_out else 1.0,
        gamma=gamma,
        share=share,
    )


def _padding(mixer: BidirectionalMixer, x_proj: Tensor) -> int:
    return x_proj.shape[1] - mixer.rank - 2 * mixer.d_state


def _recomputes(hidden: Tensor) -> bool:
    """Whether the backward computes the large intermediates again instead of keeping them.

    That halves what a block keeps. A CPU has memory for them, and a small batch on a GPU costs
    more launches than memory.
    """
    return hidden.is_cuda and hidden.numel() > _SMALL


def _project(u: Tensor, weight: Tensor) -> Tensor:
    """(B, K, L, E) times the (K, R, E) weights of each direction: (B, K, L, R)."""
    rows = u.transpose(0, 1)  # (K, B, L, E)
    if not rows.is_contiguous():
        return u @ weight.transpose(1, 2)
    # One product a direction instead of one a sample and direction.
    return product_each(rows.flatten(1, 2), weight).unflatten(1, rows.shape[1:3]).transpose(0, 1)


class _FusedBlock(torch.autograd.Function):
    """Keeps E values a token beside the low-rank inputs of the scans, and D or 4 E more.

    Those are the normed stream, from which projection and step are computed again, or these two.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, residual: Tensor | None, plan: Plan, block: Any, ledger: Any
    ) -> tuple[Tensor, Tensor]:
        stream, normed, inverse = sequences.add_rms_norm(hidden, residual, plan.norm, plan.eps)
        xz = product(normed, plan.in_proj)
        x, z = xz.chunk(2, dim=-1)
        u = sequences.conv_silu(x, *plan.conv, _REVERSE)
        projected = _project(u, plan.x_proj)  # (B, 2, L, R + 2N + rows of padding)
        low, b, c, _ = projected.split(plan.sizes, dim=-1)
        dt = plan.step(low)
        y = selective_scan(u, dt, plan.A, b, c, plan.D, order=_ORDER, grad="input")
        large = (normed, None, None) if _recomputes(hidden) else (None, xz, dt)
        del u, dt  # before the gate needs room
        gated, signal = sequences.gate(y, z, plan.scale)
        del y
        ctx.save_for_backward(*large, inverse, projected, signal)
        ctx.plan, ctx.block, ctx.ledger = plan, block, ledger
        ctx.dtype, ctx.first = hidden.dtype, residual is None
        return product(gated, plan.out_proj), stream

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        at_out, at_stream = gradients
        normed, xz, dt, inverse, projected, signal = ctx.saved_tensors
        plan: Plan = ctx.plan
        xz = product(normed, plan.in_proj) if xz is None else xz
        x, z = xz.chunk(2, dim=-1)
        at_xz = torch.empty_like(xz)
        at_x, at_z = at_xz.chunk(2, dim=-1)
        at_y, _ = sequences.gate_relevance(
            product(at_out, plan.out_proj.t()),
            signal, z, *plan.share, plan.scale, out_z=at_z,
        )  # fmt: skip
        low, b, c, _ = projected.split(plan.sizes, dim=-1)
        dt = plan.step(low) if dt is None else dt
        at_y = at_y.unsqueeze(1).expand(-1, 2, -1, -1)
        at_u = selective_scan_relevance(at_y, dt, plan.A, b, c, plan.D, order=_ORDER)
        del dt, at_y  # before the convolution's relevance needs room
        _, absorbed = sequences.conv_silu_relevance(
            at_u, x, *plan.conv, _REVERSE, plan.gamma, out_x=at_x
        )
        del at_u
        ctx.ledger.append(Absorption("bias: convolution", ctx.block.mixer.conv1d, absorbed))
        at_normed = product(at_xz, plan.in_proj.t())
        at, narrow = sequences.norm_relevance(at_normed, at_stream, plan.norm, inverse)
        return narrow.to(ctx.dtype), None if ctx.first else at, None, None, None
