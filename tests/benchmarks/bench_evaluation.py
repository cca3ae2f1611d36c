"""The time of an evaluation: images, methods, two protocols, both orders, steps of 5 %.

python tests/benchmarks/bench_evaluation.py
python tests/benchmarks/bench_evaluation.py --model vim_tiny_patch16_224 --images 200

Random weights and random pictures, written to files first, so that reading, explaining, perturbing,
resuming and writing all count; the first row says how fast plain passes are alone, by their sites
and fused.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import timm
import torch
from bench_explain import seconds
from machine import describe, pick_device
from PIL import Image
from torch import nn

import vimlrp  # noqa: F401  (registers the models)
from vimlrp.evaluation import (
    Inference,
    Plan,
    Results,
    Store,
    collect,
    method_named,
    metrics_named,
    read_data,
    reports,
    run,
)

METHODS = (
    "mambalrp,gradient_x_input,norm_rule_only,without_gamma_rule,without_gate_rule,"
    "without_activation_rule,gate_to_signal,gamma_projections"
)
DTYPES = {"bf16": torch.bfloat16, "fp32": None}
ORDERS = 2


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Noise as JPEG files."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(coarse).resize((side, side)).save(folder / f"{i:05d}.jpg")


def plain_rates(
    model: nn.Module, dtype: torch.dtype | None, size: int, device: torch.device
) -> dict[str, float]:
    """Images a second of plain passes alone, by their sites and fused."""
    side = timm.data.resolve_data_config(model=model)["input_size"][-1]
    inference = Inference(model, dtype=dtype, batch_size=size)
    x = torch.randn(size, 3, side, side, device=device).to(inference.dtype)

    def composed() -> object:
        with torch.no_grad():
            return inference.model(x)

    calls = {"by sites": composed, "fused": lambda: inference(x)}
    return {
        name: size / statistics.median(seconds(call, device, 5)) for name, call in calls.items()
    }


def evaluate(plan: Plan, folder: Path) -> tuple[float, float, Results]:
    """Seconds to measure and to report."""
    store = Store(folder, plan.settings())
    started = time.perf_counter()
    run(plan, store)
    measured = time.perf_counter()
    results = collect(plan, store)
    reports.write(results, folder)
    return measured - started, time.perf_counter() - measured, results


@click.command()
@click.option("--model", "name", default="vim_small_patch16_224")
@click.option("--images", "count", default=1000)
@click.option("--methods", default=METHODS)
@click.option("--protocols", default="zero_token,mean")
@click.option("--precision", type=click.Choice([*DTYPES]), default="bf16")
@click.option("--batch-size", default=32)
@click.option("--forward-size", default=256)
@click.option("--device", default="auto")
def main(
    name: str,
    count: int,
    methods: str,
    protocols: str,
    precision: str,
    batch_size: int,
    forward_size: int,
    device: str,
) -> None:
    """Print how long an evaluation takes, and where the time goes."""
    place = pick_device(device)
    print(describe(place))
    torch.manual_seed(0)
    model = timm.create_model(name).eval().to(place)
    rates = plain_rates(model, DTYPES[precision], forward_size, place)
    for how, rate in rates.items():
        line = f"plain passes {how}, {forward_size} at a time: {rate:.0f} images a second"
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        write_pictures(pictures, count, 256)
        plan = Plan(
            model=model,
            model_name=name,
            data=read_data(pictures, None, model.num_classes),
            methods={method: method_named(method) for method in methods.split(",")},
            metrics=metrics_named(["flipping"], protocols.split(",")),
            batch_size=batch_size,
            forward_size=forward_size,
            dtype=DTYPES[precision],
        )
        measuring, reporting, results = evaluate(plan, Path(folder) / "out")
    steps = plan.metrics[0].curve_axis[1] or ()
    passes = count * len(plan.methods) * len(plan.metrics) * ORDERS * (len(steps) - 1)
    print(
        f"\n{count} images, {len(plan.methods)} methods, {len(plan.metrics)} protocols, both "
        f"orders, {len(steps) - 1} steps, {precision}: about {passes:,} passes in "
        f"{measuring:.1f} s ({passes / measuring:.0f} a second), and {reporting:.1f} s to report; "
        f"the passes alone would take {passes / rates['fused']:.1f} s\n"
    )
    print(reports.cost_table(results))


if __name__ == "__main__":
    main()
