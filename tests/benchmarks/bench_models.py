"""One row a model: parameters, what the account leaves over, and an explanation over a plain pass.

python tests/benchmarks/bench_models.py

Random weights, one image of the model's own size, float32; the residue is the part of the target's
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


def residue(model: nn.Module) -> float:
    """The account's residue over the sum of its parts' sizes."""
    model = copy.deepcopy(model).cpu().double()
    account = vimlrp.explain(model, images(model, 3, torch.float64, torch.device("cpu"))).account
    sizes = torch.stack([part.abs() for part in account.parts.values()]).sum(0)
    return float((account.residue.abs() / sizes).max())


def row(name: str, device: torch.device, count: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000).to(device).eval()
    explainer = vimlrp.Explainer(model)
    x = images(model, 1, torch.float32, device)

    def plain() -> object:
        with torch.no_grad():
            return model(x)

    runs = (plain, lambda: explainer(x, target=3))
    times = [1e3 * statistics.median(samples) for samples in alternating(runs, device, count)]
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"| {name} | {size:.1f} | {residue(model):.0e} | {times[0]:.0f} | {times[1]:.0f} "
        f"| {times[1] / times[0]:.1f} |"
    )


def rows(names: tuple[str, ...], device: torch.device, count: int) -> Iterator[str]:
    """The table, where a model that fails is named with its error."""
    yield "| model | M parameters | residue | plain (ms) | explain (ms) | ratio |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        try:
            yield row(name, device, count)
        except Exception as error:  # noqa: BLE001 (the other rows are worth having)
            yield f"| {name} | {type(error).__name__}: {error} |"


@click.command()
@click.option("--model", "models", multiple=True, default=MODELS)
@click.option("--device", default="auto")
@click.option("--count", default=7, help="Runs that count.")
def main(models: tuple[str, ...], device: str, count: int) -> None:
    """Print a Markdown table of models."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    place = pick_device(device)
    print(describe(place))
    for line in rows(models, place, count):
        print(line, flush=True)


if __name__ == "__main__":
    main()
