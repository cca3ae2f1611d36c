"""A VMamba block and its relevance as one operation: fewer kernels, less memory, the same numbers.

What `fused` is to Vim. Where the rules are those of MambaLRP (any gamma in the convolution, any
shares at the gate), the whole relevance pass of a block, norm, scans of four routes, norm, MLP and
both residual sums, is known in closed form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.kernels import ScanOrder, selective_scan, selective_scan_relevance
from vimlrp.kernels.fused import maps, sequences
from vimlrp.kernels.products import product
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
    from vimlrp.models.ss2d import SS2D
    from vimlrp.models.vmamba_blocks import Block, Mlp

__all__ = ["Plan", "plans_of", "run"]


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a layer, or scale and shift of a norm."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Plan:
    """What a fused block computes with: constants, and the rules' numbers.

    Args:
        norm: (C,) each.
        in_proj: (E, C), or (2E, C) with a gate.
        conv: Weights (E, 3, 3) and a bias (E,) or None.
        x_proj: (4 (R + 2N), E), all routes one below the other.
        sizes: R, N and N.
        dt_proj: Weights (4, E, R) and biases (4, E).
        A: (4, E, N).
        D: (4, E).
        out_norm: (E,) each.
        out_proj: (C, E).
        mlp: Norm (C,), first layer (4C, C) and second layer (C, 4C), or None.
        eps: Of the norm, of the one after the scan, and of that of the MLP.
        gamma: Of the convolution's rule, 0 for LRP-0.
        share: Of the gate's rule: signal and gate; None without a gate.
    """

    norm: Affine
    in_proj: Tensor
    conv: tuple[Tensor, Tensor | None]
    x_proj: Tensor
    sizes: tuple[int, int, int]
    dt_proj: Affine
    A: Tensor
    D: Tensor
    out_norm: Affine
    out_proj: Tensor
    mlp: tuple[Affine, Affine, Affine] | None
    eps: tuple[float, float, float]
    gamma: float
    share: tuple[float, float] | None

    def routes(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low-rank step, B and C, (B, 4, L, ...) each, out of u's product, (B, L, 4 (R + 2N))."""
        routes = projected.unflatten(-1, (len(self.A), -1)).transpose(1, 2)
        low, b, c = routes.split(self.sizes, dim=-1)
        return low, b, c

    def step(self, low: Tensor) -> Tensor:
        """Step (B, 4, L, E) out of its low-rank input (B, 4, L, R)."""
        return sequences.step(low, self.dt_proj.weight, self.dt_proj.bias)


# Values of a map up to which its steps, four times as many, are kept for the backward: 64 images
# at the first stage of VMamba-S or -T, and twice that.
_KEPT = 1 << 25


def plans_of(blocks: Sequence["Block"]) -> list[Plan | None]:
    """The plans by which blocks can run as one operation each.

    Args:
        blocks: Of a stage of a VMamba, inside an explanation or not.

    Returns:
        One for each block; None for a block that has to run by its sites.
    """
    trace = active()
    shapes = {(b.op.A_logs.shape, b.op.dt_projs_weight.shape) for b in blocks}
    if trace is None or not trace.fuse or trace.watcher is not None or len(shapes) != 1:
        return [None] * len(blocks)
    if torch.is_autocast_enabled(blocks[0].norm.weight.device.type):
        return [None] * len(blocks)
    numbers = [_numbers(block, trace) if _is_fusible(block) else None for block in blocks]
    chosen = [block.op for block, found in zip(blocks, numbers, strict=True) if found is not None]
    constants = iter(_constants(chosen))
    return [
        None if found is None else _plan(block, *next(constants), *found)
        for block, found in zip(blocks, numbers, strict=True)
    ]


def run(plan: Plan, block: "Block", x: Tensor, order: ScanOrder) -> Tensor:
    """Run a block as one operation.

    Args:
        plan: Of the block.
        block: Its parts are named in the account of what their biases take.
        x: The map, (B, H, W, C).
        order: The four routes over it.

    Returns:
        The new map, (B, H, W, C).
    """
    trace = active()
    ledger = [] if trace is None else trace.absorptions
    out: Tensor = _FusedBlock.apply(x, plan, block, order, ledger)
    return out


def _is_fusible(block: "Block") -> bool:
    """Whether a block has the layers that a plan describes, and nothing listens inside it."""
    _, *inner = modules = list(block.modules())
    if any(module._forward_hooks or module._forward_pre_hooks for module in inner):
        return False
    mixer = block.op
    plain = mixer.in_proj.bias is None and mixer.out_proj.bias is None
    parameters = (p for module in modules for p in module._parameters.values() if p is not None)
    return plain and len({parameter.dtype for parameter in parameters}) == 1


def _fixed(block: "Block") -> dict[nn.Module, Rule]:
    """The rules that the fused path computes, but for convolution and gate."""
    mixer = block.op
    fixed: dict[nn.Module, Rule] = {
        block.norm: ConstantNormaliser(),
        mixer.in_proj: Zero(),
        mixer.act: Identity(),
        mixer.scan: ConstantFactors(),
        mixer.out_norm: ConstantNormaliser(),
        mixer.out_proj: Zero(),
        block.residual: Gradient(),
    }
    if mixer.gated:
        fixed[mixer.gate_act] = Identity()
    if block.mlp is not None:
        mlp = cast("Mlp", block.mlp)
        fixed |= {block.norm2: ConstantNormaliser(), mlp.fc1: Zero(), mlp.act: Identity()}
        fixed |= {mlp.fc2: Zero(), block.residual2: Gradient()}
    return fixed


def _numbers(block: "Block", trace: Trace) -> tuple[float, tuple[float, float] | None] | None:
    """Gamma and the gate's shares, if the block's rules are those that the fused path computes."""
    if any(trace.rule_of(site) != rule for site, rule in _fixed(block).items()):
        return None
    conv = trace.rule_of(block.op.conv2d)
    if not isinstance(conv, Gamma | Zero):
        return None
    gamma = conv.gamma if isinstance(conv, Gamma) else 0.0
    if not block.op.gated:
        return gamma, None
    gate = trace.rule_of(block.op.gate)
    return (gamma, (gate.signal, gate.gate)) if isinstance(gate, Share) else None


def _constants(mixers: Sequence["SS2D"]) -> list[tuple[Tensor, Tensor]]:
    """Rates and the weights of the step, gathered at once: on a GPU each gathering is a launch.

    There, neighbouring channels are side by side in memory, as the kernels load them.
    """
    if not mixers:
        return []
    if not mixers[0].A_logs.is_cuda:
        return [
            (-torch.exp(mixer.A_logs.detach()).unflatten(0, (len(weight), -1)), weight)
            for mixer in mixers
            for weight in [mixer.dt_projs_weight.detach()]
        ]
    weights = [mixer.dt_projs_weight.detach() for mixer in mixers]
    logs = [mixer.A_logs.detach().unflatten(0, weights[0].shape[:2]) for mixer in mixers]
    rates = -torch.exp(torch.stack([log.mT for log in logs]))
    steps = torch.stack([weight.mT for weight in weights])
    return list(zip(rates.mT, steps.mT, strict=True))


def _plan(
    block: "Block",
    rates: Tensor,
    steps: Tensor,
    gamma: float,
    share: tuple[float, float] | None,
) -> Plan:
    mixer, conv = block.op, block.op.conv2d
    mlp = None
    if block.mlp is not None:
        layers = cast("Mlp", block.mlp)
        mlp = (_affine(block.norm2), _affine(layers.fc1), _affine(layers.fc2))
    return Plan(
        norm=_affine(block.norm),
        in_proj=mixer.in_proj.weight.detach(),
        conv=(conv.weight.detach()[:, 0], None if conv.bias is None else conv.bias.detach()),
        x_proj=mixer.x_proj_weight.detach().flatten(0, 1),
        sizes=(mixer.rank, mixer.d_state, mixer.d_state),
        dt_proj=Affine(steps, mixer.dt_projs_bias.detach()),
        A=rates,
        D=mixer.Ds.detach().unflatten(0, (len(rates), -1)),
        out_norm=_affine(mixer.out_norm),
        out_proj=mixer.out_proj.weight.detach(),
        mlp=mlp,
        eps=(block.norm.eps, mixer.out_norm.eps, block.norm2.eps if mlp else 0.0),
        gamma=gamma,
        share=share,
    )


def _affine(layer: Any) -> Affine:
    return Affine(layer.weight.detach(), layer.bias.detach())


def _recomputes(x: Tensor) -> bool:
    """Whether the backward computes the steps again, which are almost half of what a block keeps.

    A CPU has memory for them, and so has a GPU for most batches.
    """
    return x.is_cuda and x.numel() > _KEPT


@dataclass(frozen=True)
class _Mixed:
    """What the mixer's backward needs: (B, L, ...) each, `maps` says what."""

    inverse: Tensor
    xz: Tensor
    projected: Tensor
    dt: Tensor | None
    spread: Tensor
    signal: Tensor | None


def _mix(plan: Plan, x: Tensor, sides: torch.Size, order: ScanOrder) -> tuple[Tensor, _Mixed]:
    """The mixer's branch of a stream (B, L, C), and what its backward needs."""
    normed, inverse = maps.layer_norm(x.unsqueeze(1), plan.norm.weight, plan.norm.bias, plan.eps[0])
    xz = product(normed, plan.in_proj)
    inner = plan.D.shape[1]
    u = maps.conv_silu(xz[..., :inner].unflatten(1, sides), *plan.conv).flatten(1, 2)
    projected = product(u, plan.x_proj)
    low, b, c = plan.routes(projected)
    dt = plan.step(low)
    y = selective_scan(u, dt, plan.A, b, c, plan.D, order=order, grad="input")
    out, spread = maps.layer_norm(y, plan.out_norm.weight, plan.out_norm.bias, plan.eps[1])
    signal = None
    if plan.share is not None:
        out, signal = sequences.gate(out.unsqueeze(1), xz[..., inner:], 1.0)
    kept = _Mixed(inverse, xz, projected, None if _recomputes(x) else dt, spread, signal)
    return product(out, plan.out_proj), kept


class _Books:
    """Notes what the biases of a block take."""

    def __init__(self, ledger: list[Absorption]) -> None:
        self._ledger = ledger

    def note(self, site: Any, share: Tensor) -> None:
        """What the bias of a site takes in each sample, (B,)."""
        self._ledger.append(Absorption(f"bias: {site.kind}", site, share))


def _unmix(
    plan: Plan, mixer: "SS2D", kept: _Mixed, at_out: Tensor, sides: torch.Size, order: ScanOrder,
    books: _Books,
) -> Tensor:  # fmt: skip
    """The gradient at the mixer's normalised input, (B, L, C), for that at its branch."""
    inner = plan.D.shape[1]
    at_xz = torch.empty_like(kept.xz)
    at_normed = product(at_out, plan.out_proj.t())
    if plan.share is not None and kept.signal is not None:
        z, at_z = kept.xz[..., inner:], at_xz[..., inner:]
        at_normed, _ = sequences.gate_relevance(
            at_normed, kept.signal, z, *plan.share, 1.0, out_z=at_z
        )
    at_y, absorbed, _ = maps.layer_norm_relevance(
        at_normed, None, plan.out_norm.weight, plan.out_norm.bias, kept.spread
    )
    books.note(mixer.out_norm, absorbed)
    low, b, c = plan.routes(kept.projected)
    dt = plan.step(low) if kept.dt is None else kept.dt
    at_y = at_y.unsqueeze(1).expand(-1, len(plan.A), -1, -1)
    # On a GPU the routes run side by side, and the convolution reads what each has written.
    at_u = selective_scan_relevance(
        at_y, dt, plan.A, b, c, plan.D, order=order, summed=not at_y.is_cuda
    )
    _, absorbed = maps.conv_silu_relevance(
        at_u.unflatten(2, sides), kept.xz[..., :inner].unflatten(1, sides), *plan.conv,
        plan.gamma, out_x=at_xz[..., :inner].unflatten(1, sides),
    )  # fmt: skip
    if plan.conv[1] is not None:
        books.note(mixer.conv2d, absorbed)
    return product(at_xz, plan.in_proj.t())


def _add_product(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add x (B, L, C) times the transpose of weight (D, C) to out."""
    if out.dtype == torch.float32:
        out.add_(product(x, weight))
    else:  # without room for the product
        out.flatten(0, 1).addmm_(x.flatten(0, 1), weight.t())


class _FusedBlock(torch.autograd.Function):
    """Keeps the inputs of the convolution, of GELU and of the step, and the inverse deviations."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: Plan, block: "Block", order: ScanOrder, ledger: list[Absorption]
    ) -> Tensor:
        sides, x = x.shape[1:3], x.flatten(1, 2)
        branch, mixed = _mix(plan, x, sides, order)
        hidden = inverse = None
        if plan.mlp is None:
            out = x + branch
        else:
            norm, first, second = plan.mlp
            # The bias of the second layer joins the stream here, and its product in place.
            out, normed, inverse = maps.add_layer_norm(
                x, branch, norm.weight, norm.bias, plan.eps[2], after=second.bias
            )
            hidden = product(normed, first.weight, first.bias)
            _add_product(out, F.gelu(hidden), second.weight)
        kept = (mixed.inverse, mixed.xz, mixed.projected, mixed.dt, mixed.spread, mixed.signal)
        ctx.save_for_backward(*kept, hidden, inverse)
        ctx.plan, ctx.block, ctx.order, ctx.ledger, ctx.sides = plan, block, order, ledger, sides
        return out.unflatten(1, sides)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *kept, hidden, inverse = ctx.saved_tensors
        plan: Plan = ctx.plan
        block, books = ctx.block, _Books(ctx.ledger)
        at, mixed = gradients[0].flatten(1, 2), _Mixed(*kept)
        if plan.mlp is not None:
            norm, first, second = plan.mlp
            at_hidden, absorbed = maps.gelu_relevance(
                product(at, second.weight.t()), hidden, first.bias
            )
            books.note(block.mlp.fc1, absorbed)
            at, absorbed, by_second = maps.layer_norm_relevance(
                product(at_hidden, first.weight.t()),
                at,
                norm.weight,
                norm.bias,
                inverse,
                after=second.bias,
            )
            books.note(block.norm2, absorbed)
            books.note(block.mlp.fc2, by_second)
        at_normed = _unmix(plan, block.op, mixed, at, ctx.sides, ctx.order, books)
        at, absorbed, _ = maps.layer_norm_relevance(
            at_normed, at, plan.norm.weight, plan.norm.bias, mixed.inverse
        )
        books.note(block.norm, absorbed)
        return at.unflatten(1, ctx.sides), None, None, None, None
