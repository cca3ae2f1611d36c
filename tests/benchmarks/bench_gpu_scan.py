"""Time one selective scan on one GPU: forward and relevance pass, against mamba-ssm's extension.

python tests/benchmarks/bench_gpu_scan.py

A CUDA graph of 20 launches is replayed; the launches take turns on several sets of inputs, so that
large ones do not stay in the second-level cache. mamba-ssm gets its own layout without charge, and
its backward computes all gradients. The bound of a pass is the larger of its exponentials at 16 a
clock and multiprocessor, and three tensors (two read, one written) at the bandwidth of a copy.
"""

import importlib
import statistics
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import click
import torch
import triton
from machine import describe
from torch import Tensor

from vimlrp.kernels import ScanOrder, selective_scan, selective_scan_relevance
from vimlrp.kernels.extension import EXTENSION

GPU = torch.device("cuda")
LAUNCHES = 20
# Together larger than any second-level cache in use.
_ROTATED = 256 * 2**20
_EXPONENTIALS_A_CLOCK = 16
HEAD = (
    "| scan, K=1 | B | type | bound (ms) | forward (ms) | of bound | relevance (ms) | of bound "
    "| relevance / forward | mamba-ssm forward (ms) | its backward (ms) | forward, times faster "
    "| backward, times faster | differ by |\n" + "|---" * 14 + "|"
)


class Shape(NamedTuple):
    """One scan of a model."""

    name: str
    channels: int
    length: int
    state: int
    batch: int
    dtype: torch.dtype


SHAPES = (
    Shape("Vim-small", 768, 197, 16, 1, torch.bfloat16),
    Shape("Vim-small", 768, 197, 16, 64, torch.bfloat16),
    Shape("Vim-small", 768, 197, 16, 256, torch.bfloat16),
    Shape("Vim-small", 768, 197, 16, 256, torch.float32),
    Shape("VMamba-T stage 1", 192, 3136, 1, 1, torch.bfloat16),
    Shape("VMamba-T stage 1", 192, 3136, 1, 64, torch.bfloat16),
    Shape("VMamba-T stage 3", 768, 196, 1, 64, torch.bfloat16),
)
Run = Callable[[], Tensor]


@dataclass
class Inputs:
    """The tensors of one scan in our layout."""

    u: Tensor  # (B, 1, L, D), as dt and dy
    dt: Tensor
    A: Tensor  # (1, D, N)
    B: Tensor  # (B, 1, L, N), as C
    C: Tensor
    D: Tensor  # (1, D)
    dy: Tensor

    @classmethod
    def draw(cls, shape: Shape) -> "Inputs":
        """Steps as after softplus, about 0.01 to 0.1; rates as at initialisation."""
        _, channels, length, state, batch, dtype = shape
        wide, narrow = (batch, 1, length, channels), (batch, 1, length, state)
        u, dy = torch.randn(2, *wide, device=GPU).to(dtype)
        B, C = torch.randn(2, *narrow, device=GPU).to(dtype)
        dt = torch.nn.functional.softplus(0.7 * torch.randn(wide, device=GPU) - 3.5).to(dtype)
        rates = -torch.arange(1, state + 1, device=GPU).float().expand(1, channels, state)
        return cls(u, dt, rates.contiguous(), B, C, torch.randn(1, channels, device=GPU), dy)

    def forward(self) -> Tensor:
        """Our scan; y (B, 1, L, D)."""
        factors = (self.dt, self.A, self.B, self.C, self.D)
        return selective_scan(self.u, *factors, order=ORDER, grad="input", backend="triton")

    def relevance(self) -> Tensor:
        """Our relevance pass; the gradient at u."""
        factors = (self.dt, self.A, self.B, self.C, self.D)
        return selective_scan_relevance(self.dy, *factors, order=ORDER, backend="triton")

    def transposed(self, extension: ModuleType) -> tuple[Run, Run]:
        """mamba-ssm's forward and backward on the same values, (B, D, L)."""
        tensors = (self.u, self.dt, self.dy, self.B, self.C)
        u, dt, dy, B, C = (x[:, 0].transpose(1, 2).contiguous() for x in tensors)
        factors = (dt, self.A[0], B.unsqueeze(1), C.unsqueeze(1), self.D[0])
        states = extension.fwd(u, *factors, None, None, False)[1]

        def forward() -> Tensor:
            return extension.fwd(u, *factors, None, None, False)[0]

        def backward() -> Tensor:
            found = extension.bwd(u, *factors, None, None, dy, states, None, None, False, False)
            return found[0]

        return forward, backward


ORDER = ScanOrder.forward()


@dataclass
class Machine:
    """What bounds a scan: the clock (Hz), the multiprocessors, and the bytes a second of a copy."""

    clock: float
    multiprocessors: int
    bandwidth: float

    @classmethod
    def measure(cls) -> "Machine":
        """Ask the driver, and copy a GiB."""
        properties = triton.runtime.driver.active.utils.get_device_properties(0)
        x = torch.randn(2**28, device=GPU)
        y = torch.empty_like(x)
        milliseconds = statistics.median(replayed([lambda: y.copy_(x)], 10))
        return cls(
            1e3 * properties["sm_clock_rate"],
            properties["multiprocessor_count"],
            2e3 * x.nbytes / milliseconds,
        )

    def bound(self, shape: Shape) -> float:
        """Milliseconds that no scan of this shape can beat."""
        _, channels, length, state, batch, dtype = shape
        elements = batch * length * channels
        exponentials = elements * state / (_EXPONENTIALS_A_CLOCK * self.multiprocessors)
        return 1e3 * max(exponentials / self.clock, 3 * elements * dtype.itemsize / self.bandwidth)


def replayed(runs: list[Run], count: int) -> list[float]:
    """Milliseconds of one launch, `count` times, by replay of a graph of `LAUNCHES` of them."""
    for run in runs:  # compiles, and loads modules, which a capture does not allow
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(LAUNCHES):
            runs[i % len(runs)]()
    samples = []
    for _ in range(count + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(end) / LAUNCHES)
    return samples[3:]


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 of ours (B, 1, L, D) to theirs (B, D, L)."""
    expected = theirs.double().transpose(1, 2)
    return float((ours[:, 0].double() - expected).norm() / expected.norm())


def sets_of(shape: Shape) -> list[Inputs]:
    """Sets of inputs larger than the cache together, at most one for each launch."""
    size = 3 * shape.batch * shape.length * shape.channels * shape.dtype.itemsize
    return [Inputs.draw(shape) for _ in range(min(LAUNCHES, max(2, -(-_ROTATED // size))))]


def row(shape: Shape, machine: Machine, extension: ModuleType | None, count: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    sets = sets_of(shape)
    forward = replayed([x.forward for x in sets], count)
    relevance = replayed([x.relevance for x in sets], count)
    bound, first, second = (
        machine.bound(shape),
        statistics.median(forward),
        statistics.median(relevance),
    )
    cells = [
        shape.name, shape.batch, str(shape.dtype).removeprefix("torch."), f"{bound:.4f}",
        spread(forward), f"{bound / first:.0%}", spread(relevance), f"{bound / second:.0%}",
        f"{second / first:.2f}", *against(extension, sets, (first, second), count),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def against(
    extension: ModuleType | None, sets: list[Inputs], ours: tuple[float, float], count: int
) -> list[str]:
    """The cells of mamba-ssm."""
    if extension is None:
        return ["absent"] * 5
    theirs = [x.transposed(extension) for x in sets]
    forward, backward = (replayed([both[i] for both in theirs], count) for i in (0, 1))
    ratios = [statistics.median(t) / o for t, o in zip((forward, backward), ours, strict=True)]
    gaps = gap(sets[0].forward(), theirs[0][0]()), gap(sets[0].relevance(), theirs[0][1]())
    return [spread(forward), spread(backward), *(f"{r:.1f}" for r in ratios), f"{max(gaps):.0e}"]


def spread(samples: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"


def extension_or_none() -> ModuleType | None:
    """mamba-ssm's compiled module, where it is installed."""
    try:
        return importlib.import_module(EXTENSION)
    except ImportError:
        return None


@click.command()
@click.option("--count", default=20, help="Replays that count.")
def main(count: int) -> None:
    """Print a Markdown table of scan times."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    machine, extension = Machine.measure(), extension_or_none()
    print(describe(GPU))
    print(
        f"{machine.multiprocessors} multiprocessors at {machine.clock / 1e6:,.0f} MHz; "
        f"a copy moves {machine.bandwidth / 1e12:.2f} TB/s.\n\n{HEAD}"
    )
    with torch.no_grad():
        for shape in SHAPES:
            try:
                print(row(shape, machine, extension, count), flush=True)
            except Exception:  # noqa: BLE001 (the other shapes are still to come)
                print(f"\n{shape} failed:\n{traceback.format_exc()}", flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
