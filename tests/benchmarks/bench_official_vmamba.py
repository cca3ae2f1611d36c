"""Time explanations of VMamba-T against the official VMamba's plain pass, with the same weights.

python tests/benchmarks/bench_official_vmamba.py --official FOLDER

FOLDER holds vmamba/official_vmamba: classification/models/vmamba.py of MzeroMiko/VMamba and what it
imports, as a package of that name, and REVISIONS; its CUDA extension selective_scan_cuda_oflex must
be importable. None of it is part of this repository. One process, one GPU, TF32 off; medians with
quartiles.
"""

import importlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import timm
import torch
from bench_explain import peak_mib, seconds
from machine import describe, pick_device
from torch import Tensor, nn

import vimlrp
from vimlrp.engine import FUSE_VARIABLE

NAME = "vmamba_tiny_s1l8"
TARGET = 3
HEAD = (
    "| type | B | official plain (ms) | our plain (ms) | explain (ms) | images/s | MiB an image "
    "| explain / official plain |\n|---|---|---|---|---|---|---|---|"
)
HEAD_GAP = "| relative L2 | float32 | bfloat16, to float32 |\n|---|---|---|"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def official(folder: Path, device: torch.device) -> nn.Module:
    """The published configuration, its biases, norms and head away from their initial values."""
    sys.path.insert(0, str(folder / "vmamba"))
    torch.manual_seed(0)
    model: nn.Module = getattr(importlib.import_module("official_vmamba.vmamba"), NAME)()
    with torch.no_grad():
        nn.init.normal_(model.classifier.head.weight, std=0.02)
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.02 * torch.randn_like(p))
    return model.requires_grad_(requires_grad=False).to(device).eval()


def ours(weights: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Our model with the official one's weights."""
    model = timm.create_model(f"{NAME}_224")
    model.load_state_dict(weights.state_dict())
    return model.to(device, dtype).eval()


def images(batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random images, (B, 3, 224, 224)."""
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(batch))
    return x.to(device, dtype)


def gap(found: Tensor, expected: Tensor) -> float:
    """Relative L2."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def explained(model: nn.Module, x: Tensor, fused: str) -> vimlrp.Relevance:
    """An explanation by sites ("0") or by fused blocks ("1")."""
    os.environ[FUSE_VARIABLE] = fused
    try:
        return vimlrp.Explainer(model, graphs=False)(x, target=TARGET)
    finally:
        del os.environ[FUSE_VARIABLE]


def gaps(theirs: nn.Module, device: torch.device, batch: int = 4) -> Iterator[str]:
    """Logits against the official ones, and fused against composed relevances."""
    models = [ours(theirs, dtype, device) for dtype in DTYPES.values()]
    given = [images(batch, dtype, device) for dtype in DTYPES.values()]
    with torch.no_grad():
        expected = theirs(given[0])
        logits = [gap(m(x), expected) for m, x in zip(models, given, strict=True)]
    yield f"| logits, ours to official | {logits[0]:.1e} | {logits[1]:.1e} |"
    exact = explained(models[0], given[0], "0")
    for kind in ("patches", "pixels"):
        cells = [
            f"{gap(getattr(explained(m, x, '1'), kind), getattr(exact, kind)):.1e}"
            for m, x in zip(models, given, strict=True)
        ]
        yield f"| {kind}, fused to composed | {' | '.join(cells)} |"


def row(theirs: nn.Module, dtype: torch.dtype, batch: int, device: torch.device, count: int) -> str:
    """One line of the table; official bfloat16 is its float32 model under autocast."""
    model = ours(theirs, dtype, device)
    x, given = images(batch, torch.float32, device), images(batch, dtype, device)
    explainer, once = vimlrp.Explainer(model), vimlrp.Explainer(model, graphs=False)

    def timed(run: Callable[[], object]) -> tuple[float, str]:
        samples = [1e3 * s for s in seconds(run, device, count)]
        low, middle, high = statistics.quantiles(samples, n=4)
        return middle, f"{middle:.1f} ({low:.1f} to {high:.1f})"

    lower = dtype != torch.float32
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=lower):
        plain, plain_text = timed(lambda: theirs(x))
    with torch.no_grad():
        _, own_text = timed(lambda: model(given))
    explain, explain_text = timed(lambda: explainer(given, target=TARGET))
    memory = "" if device.type != "cuda" else f"{peak(once, given, device):.1f}"
    return (
        f"| {str(dtype).removeprefix('torch.')} | {batch} | {plain_text} | {own_text} "
        f"| {explain_text} | {1e3 * batch / explain:,.0f} | {memory} | {explain / plain:.2f} |"
    )


def peak(explainer: vimlrp.Explainer, x: Tensor, device: torch.device) -> float:
    """MiB an image of an explanation that is not replayed."""
    return peak_mib(lambda: explainer(x, target=TARGET), device) / len(x)


@click.command()
@click.option(
    "--official", "folder", envvar="VIMLRP_OFFICIAL", required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)  # fmt: skip
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 8, 64))
@click.option(
    "--type", "types", multiple=True, type=click.Choice(list(DTYPES)), default=tuple(DTYPES)
)
@click.option("--count", default=10, help="Runs that count.")
@click.option("--device", "wish", default="auto", show_default=True)
def main(
    folder: Path, batches: tuple[int, ...], types: tuple[str, ...], count: int, wish: str
) -> None:
    """Print Markdown tables of both codes on one device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = pick_device(wish)
    theirs = official(folder, device)
    print(describe(device), (folder / "REVISIONS").read_text(encoding="utf-8"), HEAD, sep="\n\n")
    for name in types:
        for batch in batches:
            print(row(theirs, DTYPES[name], batch, device, count), flush=True)
    print(f"\n{HEAD_GAP}")
    for line in gaps(theirs, device):
        print(line, flush=True)


if __name__ == "__main__":
    main()
