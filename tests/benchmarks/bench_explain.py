"""Time explanations against plain inference of the same model.

python tests/benchmarks/bench_explain.py --model vim_small_patch16_224 --batch 1 --batch 64

Medians over the given number of runs, plain and explained in turns, with the spread between the
quartiles. TF32 is off.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import click
import timm
import torch
from machine import describe, pick_device

import vimlrp

WARM_UP = 3
"""Runs that do not count."""


def seconds(
    run: Callable[[], object], device: torch.device, count: int, warm_up: int = WARM_UP
) -> list[float]:
    """Wall time of each of `count` runs, after some that do not count."""
    samples = []
    for i in range(count + warm_up):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= warm_up:
            samples.append(time.perf_counter() - start)
    return samples


def alternating(
    runs: Sequence[Callable[[], object]], device: torch.device, count: int
) -> list[list[float]]:
    """`seconds` of several runs in turns, so that what else the machine does befalls all alike."""
    turns = [[seconds(run, device, 1, 0)[0] for run in runs] for _ in range(count + WARM_UP)]
    return [list(samples) for samples in zip(*turns[WARM_UP:], strict=True)]


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """Peak memory of one run beyond what was allocated before it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def row(name: str, dtype: torch.dtype, batch: int, device: torch.device, count: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    model = timm.create_model(name).to(device, dtype).eval()
    explainer = vimlrp.Explainer(model)
    x = torch.randn(batch, 3, *model.img_size, device=device, dtype=dtype)

    def plain() -> object:
        with torch.no_grad():
            return model(x)

    def explain() -> object:
        return explainer(x, target=3)

    forward, full = alternating((plain, explain), device, count)
    # What a pass needs; one that is replayed keeps it in its graph from call to call.
    once = vimlrp.Explainer(model, graphs=False)
    memory = ""
    if device.type == "cuda":
        memory = f"{peak_mib(lambda: once(x, target=3), device) / batch:.1f}"
    low, middle, high = statistics.quantiles(full, n=4)
    return (
        f"| {name} | {str(dtype).removeprefix('torch.')} | {batch} "
        f"| {1e3 * statistics.median(forward):.1f} | {1e3 * middle:.1f} "
        f"| {1e3 * low:.1f} to {1e3 * high:.1f} | {batch / middle:,.0f} "
        f"| {memory} |"
    )


@click.command()
@click.option("--model", "models", multiple=True, default=("vim_tiny_patch16_224",))
@click.option("--batch", "batches", multiple=True, type=int, default=(1,))
@click.option("--dtype", "dtypes", multiple=True, default=("float32",))
@click.option("--device", default="auto")
@click.option("--count", default=10, help="Runs that count.")
def main(
    models: tuple[str, ...],
    batches: tuple[int, ...],
    dtypes: tuple[str, ...],
    device: str,
    count: int,
) -> None:
    """Print a Markdown table of explanation times."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    place = pick_device(device)
    print(describe(place))
    print("| model | type | B | plain (ms) | explain (ms) | quartiles | images/s | MiB an image |")
    print("|---|---|---|---|---|---|---|---|")
    for name in models:
        for dtype in dtypes:
            for batch in batches:
                print(row(name, getattr(torch, dtype), batch, place, count), flush=True)


if __name__ == "__main__":
    main()
