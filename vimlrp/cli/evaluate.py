"""`vimlrp evaluate`: how good explanations are, method by method."""

import shlex
import sys
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

from vimlrp.cli.loading import (
    UsageError,
    failures_told,
    load_model,
    model_options,
    progress_bar,
    progress_of,
)
from vimlrp.evaluation import plots, reports
from vimlrp.evaluation.data import read_data
from vimlrp.evaluation.measures import Metric
from vimlrp.evaluation.methods import method_named
from vimlrp.evaluation.metrics import metrics_named
from vimlrp.evaluation.replacement import default_protocols
from vimlrp.evaluation.results import Results, collect
from vimlrp.evaluation.running import Goal, Plan, run
from vimlrp.evaluation.store import Store
from vimlrp.inference import Inference
from vimlrp.models import class_names
from vimlrp.models.reading import Weights

__all__ = ["command"]

_DTYPES = {"model": None, "bf16": torch.bfloat16, "fp32": torch.float32}
_METHODS = "mambalrp,gradient_x_input"
_METRICS = "flipping,complexity,conservation"


@click.command("evaluate", no_args_is_help=True)
@click.argument("data", type=click.Path(path_type=Path))
@model_options
@click.option(
    "--methods", default=_METHODS, show_default=True, help="Composites and baselines, by name."
)
@click.option(
    "--metrics",
    default=_METRICS,
    show_default=True,
    help="By name, with a variant behind a colon if need be: flipping:mean,segmentation.",
)
@click.option(
    "--protocols",
    help="What replaces removed patches in metrics that name nothing: zero_token, zero_patch, "
    "mean, blur, black; two that suit the model by default.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=20,
    show_default=True,
    help="Of curves; as many as there are patches for full ones.",
)
@click.option(
    "--target",
    type=click.Choice(["predicted", "label"]),
    default="predicted",
    show_default=True,
    help="Which class is explained.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate so many samples, evenly drawn.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option(
    "--forward-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Perturbed inputs to classify at a time.",
)
@click.option(
    "--precision",
    type=click.Choice([*_DTYPES]),
    default="model",
    show_default=True,
    help="Of the perturbed passes; explanations stay in the model's.",
)
@click.option("--patch-size", type=click.IntRange(min=1), help="Instead of the model's own.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("evaluation"), show_default=True
)
@click.option("--overwrite", is_flag=True, help="Replace an evaluation with other settings.")
@click.option("--plots/--no-plots", "draw", default=True, show_default=True, help="Draw curves.")
def command(
    data: Path,
    name: str,
    checkpoint: Path | None,
    weights: Weights,
    num_classes: int | None,
    classes: Path | None,
    device: str,
    methods: str,
    metrics: str,
    protocols: str | None,
    steps: int,
    target: Goal,
    limit: int | None,
    batch_size: int,
    forward_size: int,
    precision: str,
    patch_size: int | None,
    out: Path,
    overwrite: bool,
    draw: bool,
) -> None:
    """Evaluate methods on DATA: a folder of pictures, or a CSV file with boxes or masks.

    Folders inside the folder are classes. Interrupted at any moment, the same command goes on and
    ends with the same table; further methods may be added later. Exit code: 0 all measured, 1 some
    samples had problems (problems.csv), 2 nothing could start, 130 interrupted.
    """
    console = Console()
    advice = (
        "the same command with a smaller --forward-size goes on from what is measured; a smaller "
        "--batch-size needs another folder or --overwrite"
    )
    with failures_told(console, out, advice):
        if draw:
            plots.require_matplotlib()
        model = load_model(name, checkpoint, weights, num_classes, device, classes)
        found = read_data(data, class_names(model), _class_count(model, name))
        plan = Plan(
            model=model,
            model_name=name if checkpoint is None else f"{name} with {checkpoint.name}",
            data=found if limit is None else found.evenly(limit),
            methods={method: method_named(method) for method in _words(methods)},
            metrics=_metrics(metrics, protocols, steps, model),
            target=target,
            batch_size=batch_size,
            forward_size=forward_size,
            dtype=_DTYPES[precision],
            patch_size=patch_size,
        )
        plan.check()
        store = Store(out, plan.settings(), overwrite=overwrite)
        results = _run(plan, store, console)
        files = reports.write(results, out, command=shlex.join(sys.argv), draw=draw)
    _show(results, files, console)
    if results.problems:
        raise click.exceptions.Exit(1)


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    return list(dict.fromkeys(words))


def _metrics(metrics: str, protocols: str | None, steps: int, model: nn.Module) -> list[Metric]:
    chosen = default_protocols(Inference(model)) if protocols is None else _words(protocols)
    return metrics_named(_words(metrics), chosen, steps)


def _class_count(model: nn.Module, name: str) -> int:
    count = getattr(model, "num_classes", None)
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"{name} classifies nothing; evaluate a model with a classifier")
    return count


def _run(plan: Plan, store: Store, console: Console) -> Results:
    with progress_bar(console) as bar:
        run(plan, store, progress_of(bar, "evaluating"))
    return collect(plan, store)


def _show(results: Results, files: list[Path], console: Console) -> None:
    for text in (reports.result_table, reports.cost_table, reports.problem_summary):
        console.print(text(results), markup=False, highlight=False, soft_wrap=True)
    for file in files:
        console.print(f"wrote {escape(str(file))}", soft_wrap=True, highlight=False)
