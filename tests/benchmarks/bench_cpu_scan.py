"""Time one selective scan on one CPU thread: forward, and the relevance pass.

python tests/benchmarks/bench_cpu_scan.py

Every instruction set of the C++ scan, the blocked PyTorch loop, and the loop of the official code
with autograd (where the relevance pass is a backward through the loop). The contenders take turns
in one process; medians.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import click
import torch
from machine import describe
from torch import Tensor

from vimlrp.kernels import ScanOrder
from vimlrp.kernels.compiled import ISA_VARIABLE, instruction_sets
from vimlrp.kernels.scan import blocked, native


class Shape(NamedTuple):
    """One scan of a model, for one image."""

    name: str
    directions: int
    channels: int
    length: int
    state: int
    order: ScanOrder


SHAPES = (
    Shape("Vim-tiny, one direction", 1, 384, 197, 16, ScanOrder.forward()),
    Shape("Vim-small, one direction", 1, 768, 197, 16, ScanOrder.forward()),
    Shape("VMamba-T stage 1", 4, 192, 3136, 1, ScanOrder.cross(56, 56)),
    Shape("VMamba-T stage 3", 4, 768, 196, 1, ScanOrder.cross(14, 14)),
)
Pass = tuple[Callable[[], object], Callable[[], object]]


class Inputs(NamedTuple):
    """Arguments of a backend function, and the gradient of its output."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    index: Tensor | None
    reverse: list[bool]
    dy: Tensor


def draw(shape: Shape) -> Inputs:
    """Steps as after softplus, rates as at initialisation."""
    k, L, D, N = shape.directions, shape.length, shape.channels, shape.state
    rates = -torch.arange(1, N + 1).float().expand(k, D, N).contiguous()
    projection = torch.randn(2, 1, k, L, 1, N)
    u, dy = torch.randn(1, k, L, D), torch.randn(1, k, L, D)
    index, reverse = shape.order.index, list(shape.order.reverse)
    dt = 0.1 * torch.rand(1, k, L, D)
    return Inputs(u, dt, rates, *projection, torch.randn(k, D), index, reverse, dy)


def compiled(x: Inputs, isa: str) -> Pass:
    """The C++ scan with one instruction set."""

    def forward() -> object:
        os.environ[ISA_VARIABLE] = isa
        return native.forward(*x[:8])

    def backward() -> object:
        os.environ[ISA_VARIABLE] = isa
        return native.input_backward(x.dy, *x[1:8], shared=False)

    return forward, backward


def in_blocks(x: Inputs) -> Pass:
    """The PyTorch loop over blocks of steps."""
    return (
        lambda: blocked.forward(*x[:8]),
        lambda: blocked.input_backward(x.dy, *x[1:8], shared=False),
    )


def official_style(x: Inputs) -> Pass:
    """A Python loop over the steps of (B, D, L) tensors, as reference implementations have it.

    Decay and drive are materialised for all steps; autograd goes back through the loop. Raster
    order: the official code permutes its inputs elsewhere.
    """
    k, L, D = x.dt.shape[1:]
    u, dt = (t.transpose(2, 3).reshape(1, k * D, L).contiguous() for t in (x.u, x.dt))
    A, skip, dy = x.A.flatten(0, 1), x.D.flatten(), x.dy.transpose(2, 3).reshape(1, k * D, L)
    B, C = (t.squeeze(3).repeat_interleave(D, dim=1).transpose(2, 3) for t in (x.B, x.C))
    kept: list[Tensor] = []

    def forward() -> object:
        leaf = u.detach().requires_grad_()
        decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
        drive = torch.einsum("bdl,bdnl,bdl->bdln", dt, B, leaf)
        h, ys = u.new_zeros(1, k * D, A.shape[1]), []
        for i in range(L):
            h = decay[:, :, i] * h + drive[:, :, i]
            ys.append((h * C[..., i]).sum(-1))
        y = torch.stack(ys, dim=2) + leaf * skip.unsqueeze(1)
        kept[:] = [y, leaf]
        return y

    def backward() -> object:
        y, leaf = kept
        kept.clear()
        return torch.autograd.grad(y, leaf, dy)

    return forward, backward


def medians(passes: dict[str, Pass], counts: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Milliseconds of both passes, the contenders taking turns."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for turn in range(max(counts.values())):
        for name, both in passes.items():
            if turn < counts[name]:
                timed(both)  # finds the caches as the contender before left them
                samples[name].append(timed(both))
    return {
        name: (statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs))
        for name, pairs in samples.items()
    }


def timed(both: Pass) -> tuple[float, float]:
    """Milliseconds of forward and relevance pass, once."""
    start = time.perf_counter()
    both[0]()
    middle = time.perf_counter()
    both[1]()
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def rows(shape: Shape, count: int, slow: int) -> list[str]:
    """The lines of one shape."""
    x = draw(shape)
    sets = [isa for isa, runs in instruction_sets().items() if runs]
    passes = {f"C++, {isa}": compiled(x, isa) for isa in sets}
    passes |= {"blocked PyTorch loop": in_blocks(x), "official-style loop": official_style(x)}
    counts = dict.fromkeys(passes, count) | {"official-style loop": slow}
    times = medians(passes, counts)
    base = sum(times["official-style loop"])
    return [
        f"| {shape.name} | {name} | {first:.3f} | {second:.3f} | {base / (first + second):,.1f} |"
        for name, (first, second) in times.items()
    ]


@click.command()
@click.option("--count", default=50, help="Runs that count.")
@click.option("--slow", default=3, help="Runs of the official-style loop that count.")
def main(count: int, slow: int) -> None:
    """Print a Markdown table of scan times."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(describe(torch.device("cpu")))
    print("| shape, B=1, float32 | scan | forward (ms) | relevance (ms) | times faster |")
    print("|---|---|---|---|---|")
    for shape in SHAPES:
        print("\n".join(rows(shape, count, slow)), flush=True)


if __name__ == "__main__":
    main()
