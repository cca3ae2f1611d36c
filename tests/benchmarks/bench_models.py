"""One row a model: parameters, what the account leaves over, and an explanation over a plain pass.

python tests/benchmarks/bench_models.py
    python tests/benchmarks/bench_models.py --device cuda --batch 1 --batch 64

Random weights, images of the model's own size, float32; the residue is the part of the target's
logit that the account does not explain, at worst over three images, in float64.
"""

import copy
import statistics
from collections.abc import Iterator

import click
import timm
import torch
from bench_explain import alternating
from machine import describe, pick_device
from torch import Tensor, nn

import vimlrp

MODELS = (
    "vim_tiny_patch16_224", "vim_small_patch16_224", "vanilla_vmamba_tiny_224",
    "vmamba_tiny_s2l5_224", "vmamba_tiny_s1l8_224", "mambavision_tiny_224", "resnet50",
    "convnext_tiny", "vit_small_patch16_224", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "mambaout_tiny", "efficientvim_m1", "efficientnet_b0",
)  # fmt: skip


def images(model: nn.Module, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Noise of the size that a model takes."""
    size = timm.data.resolve_data_config(model=model)["input_size"]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *size, generator=generator).to(device, dtype)


def residue(model: nn.Module, device: torch.device) -> float:
    """The account's residue over the sum of its parts' sizes."""
    model = copy.deepcopy(model).double()
    account = vimlrp.explain(model, images(model, 3, torch.float64, device)).account
    sizes = torch.stack([part.abs() for part in account.parts.values()]).sum(0)
    return float((account.residue.abs() / sizes).max())


def timed(model: nn.Module, batch: int, device: torch.device, count: int) -> str:
    """The cells of one batch size: plain, explained, and their ratio."""
    explainer = vimlrp.Explainer(model)
    x = images(model, batch, torch.float32, device)

    def plain() -> object:
        with torch.no_grad():
            return model(x)

    runs = (plain, lambda: explainer(x, target=3))
    times = [1e3 * statistics.median(samples) for samples in alternating(runs, device, count)]
    return f"{times[0]:.3g} | {times[1]:.3g} | {times[1] / times[0]:.1f}"


def row(name: str, device: torch.device, batches: tuple[int, ...], count: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).to(device).eval()
    cells = " | ".join(timed(model, batch, device, count) for batch in batches)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return f"| {name} | {size:.1f} | {residue(model, device):.0e} | {cells} |"


def rows(
    names: tuple[str, ...], device: torch.device, batches: tuple[int, ...], count: int
) -> Iterator[str]:
    """The table, where a model that fails is named with its error."""
    titles = [f"plain (ms), B={b} | explain (ms), B={b} | ratio, B={b}" for b in batches]
    yield f"| model | M parameters | residue | {' | '.join(titles)} |"
    yield "|---" * (3 + 3 * len(batches)) + "|"
    for name in names:
        try:
            yield row(name, device, batches, count)
        except Exception as error:  # noqa: BLE001 (the other rows are worth having)
            yield f"| {name} | {type(error).__name__}: {error} |"


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS)
@click.option("--device", default="auto")
@click.option("--batch", "batches", multiple=True, default=(1,), help="Images at a time.")
@click.option("--count", default=7, help="Runs that count.")
def main(models: tuple[str, ...], device: str, batches: tuple[int, ...], count: int) -> None:
    """Print a Markdown table of models."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    place = pick_device(device)
    print(describe(place))
    for line in rows(models, place, batches, count):
        print(line, flush=True)


if __name__ == "__main__":
    main()
