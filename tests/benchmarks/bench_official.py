"""Time explanations against the official Vim and the official MambaLRP, with the same weights.

python tests/benchmarks/bench_official.py --official FOLDER

`official` says what the folder holds. One process, one GPU, TF32 off; medians with quartiles.
The ratios at the end divide medians of this run.
"""

import copy
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import timm
import torch
from bench_explain import peak_mib, seconds
from machine import describe
from official import Official
from torch import Tensor, nn

import vimlrp

TARGET = 3
GPU = torch.device("cuda")
HEAD = (
    "| model | type | B | official plain (ms) | our plain (ms) | explain (ms) | images/s "
    "| MiB an image | explain / official plain |\n|---|---|---|---|---|---|---|---|---|"
)
HEAD_LRP = "| Vim-small, float32, B=32 | ms | peak MiB | MiB an image |\n|---|---|---|---|"

HEAD_GAP = "| model | rules | B | relative L2, ours to the official |\n|---|---|---|---|"
# The official layer transforms, and the composite of ours that has the same rules.
RULES = {
    "LRP-0 in the convolutions": (("act", "norm"), "without_gamma_rule"),
    "gamma in the convolutions": (("act", "norm", "conv1d"), "mambalrp"),
}


@dataclass
class Times:
    """Milliseconds of one contender."""

    samples: list[float]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    def __str__(self) -> str:
        if len(self.samples) < 4:
            return f"{self.median:.1f} ({len(self.samples)} run)"
        low, middle, high = statistics.quantiles(self.samples, n=4)
        return f"{middle:.1f} ({low:.1f} to {high:.1f})"


@dataclass
class Bench:
    """The official code, how often to run, and the ratios found on the way."""

    official: Official
    count: int
    ratios: list[tuple[str, str]] = field(default_factory=list)

    def time(self, run: Callable[[], object]) -> Times:
        """Milliseconds, after runs that do not count."""
        return Times([1e3 * s for s in seconds(run, GPU, self.count)])

    def found(self, name: str, value: str) -> None:
        """Keep a line of the last table."""
        self.ratios.append((name, value))


def ours(size: str, weights: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Our model with the official one's weights."""
    model = timm.create_model(f"vim_{size}_patch16_224")
    model.load_state_dict(weights.state_dict())
    return model.to(GPU, dtype).eval()


def images(batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images, (B, 3, 224, 224)."""
    generator = torch.Generator(GPU).manual_seed(batch)
    return torch.randn(batch, 3, 224, 224, generator=generator, device=GPU).to(dtype)


def precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """How the official model runs in a type: autocast, but for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast("cuda", dtype)


def inference(bench: Bench, size: str, batches: tuple[int, ...]) -> Iterator[str]:
    """Rows of plain inference and explanations of one size."""
    vim = bench.official.vim(size, GPU)
    for dtype in (torch.float32, torch.bfloat16):
        model = ours(size, vim, dtype)
        explainer = vimlrp.Explainer(model)
        for batch in batches:
            yield inference_row(bench, vim, model, explainer, (size, dtype, batch))


def inference_row(
    bench: Bench,
    vim: nn.Module,
    model: nn.Module,
    explainer: vimlrp.Explainer,
    case: tuple[str, torch.dtype, int],
) -> str:
    """One row, and its ratio where it is one that counts."""
    size, dtype, batch = case
    x, given = images(batch), images(batch, dtype)
    with torch.no_grad(), precision(dtype):
        theirs = bench.time(lambda: vim(x))
    with torch.no_grad():
        plain = bench.time(lambda: model(given))
    explained = bench.time(lambda: explainer(given, target=TARGET))
    # What a pass needs; one that is replayed keeps it in its graph from call to call.
    once_only = vimlrp.Explainer(model, graphs=False)
    memory = peak_mib(lambda: once_only(given, target=TARGET), GPU) / batch
    ratio, short = explained.median / theirs.median, str(dtype).removeprefix("torch.")
    name = f"Vim-{size}, {short}, B={batch}"
    if (short, batch) in {("bfloat16", 256), ("float32", 64)}:
        bench.found(f"{name}: explain / official plain", f"{ratio:.2f}")
    if batch == 1:
        bench.found(f"{name}: one explanation, wall time", f"{explained} ms")
    speed = f"{1e3 * batch / explained.median:,.0f}"
    return (
        f"| Vim-{size} | {short} | {batch} | {theirs} | {plain} | {explained} | {speed} "
        f"| {memory:.1f} | {ratio:.2f} |"
    )


def relevance(bench: Bench, rules: str, batch: int = 32) -> Iterator[str]:
    """Rows of the official MambaLRP and ours under the same rules."""
    transforms, composite = RULES[rules]
    vim = bench.official.vim("small", GPU)
    explainer = vimlrp.Explainer(ours("small", vim, torch.float32), composite=composite)
    propagate, x = bench.official.relevance(copy.deepcopy(vim), transforms), images(batch)
    memory = peak_mib(lambda: explainer(x, target=TARGET), GPU)  # the first pass is not replayed
    fast = bench.time(lambda: explainer(x, target=TARGET))
    yield f"| vimlrp.Explainer, {composite} | {fast} | {memory:,.0f} | {memory / batch:.1f} |"
    # It takes seconds: the run for memory is the warm-up.
    room = peak_mib(lambda: propagate(x, TARGET), GPU)
    theirs = Times([1e3 * once(lambda: propagate(x, TARGET))])
    name = f"official MambaLRP, {rules}"
    yield f"| {name} | {theirs} | {room:,.0f} | {room / batch:.1f} |"
    bench.found(f"{name} / ours, B={batch}: time", f"{theirs.median / fast.median:,.0f}")
    bench.found(f"{name} / ours, B={batch}: peak memory", f"{room / memory:.1f}")


def once(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def agreement(bench: Bench, batch: int = 2) -> Iterator[str]:
    """How far our token relevances are from the official ones, in float32 on the GPU."""
    for size in ("small", "tiny"):
        vim, x = bench.official.vim(size, GPU), images(batch)
        model = ours(size, vim, torch.float32)
        for rules, (transforms, composite) in RULES.items():
            explained = vimlrp.explain(model, x, target=TARGET, composite=composite)
            first, *_ = bench.official.relevance(copy.deepcopy(vim), transforms)(x, TARGET)
            expected = torch.as_tensor(first).to(GPU).double()
            gap = float((explained.tokens.double() - expected).norm() / expected.norm())
            bench.found(f"Vim-{size}, float32, {rules}: relative L2 to the official", f"{gap:.1e}")
            yield f"| Vim-{size} | {rules} | {batch} | {gap:.2e} |"


def table(title: str, head: str, rows: Callable[[], Iterator[str]]) -> None:
    """Print a table row by row; an error ends this table and no other."""
    print(f"\n### {title}\n\n{head}", flush=True)
    try:
        for row in rows():
            print(row, flush=True)
    except Exception:  # noqa: BLE001 (the other tables are still to come)
        print(f"\nfailed:\n{traceback.format_exc()}", flush=True)
    torch.cuda.empty_cache()


@click.command()
@click.option(
    "--official", "folder", envvar="VIMLRP_OFFICIAL", required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)  # fmt: skip
@click.option("--size", "sizes", multiple=True, default=("small", "tiny"))
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8, 64, 256))
@click.option("--count", default=10, help="Runs that count.")
def main(folder: Path, sizes: tuple[str, ...], batches: tuple[int, ...], count: int) -> None:
    """Print Markdown tables of both codes on one GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bench = Bench(Official(folder), count)
    print(describe(GPU))
    print("\n".join(f"- {line}" for line in bench.official.revisions if line))
    table("Token relevances on the GPU, float32", HEAD_GAP, lambda: agreement(bench))
    for size in sizes:
        title = f"Vim-{size}: plain inference and explanations"
        table(title, HEAD, lambda size=size: inference(bench, size, batches))
    for rules in RULES:
        title = f"MambaLRP, {rules}"
        table(title, HEAD_LRP, lambda rules=rules: relevance(bench, rules))
    print("\n### Ratios\n\n| what | value |\n|---|---|")
    for name, value in bench.ratios:
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
