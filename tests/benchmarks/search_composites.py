"""Search rule space for a composite that is more faithful than `mambalrp`.

    python demos/evaluation_data.py imagenette imagenette.zip imagenette
    python tests/benchmarks/search_composites.py screen --data imagenette --out search
    python tests/benchmarks/search_composites.py confirm --data imagenette --out search \
        --candidates "sum 1;gate .75:.25"
    python tests/benchmarks/search_composites.py final --data imagenette --out search \
        --candidates "sum 1;gate .75:.25"
    python tests/benchmarks/search_composites.py objects --data masks.csv --out search \
        --model vim_nano_patch16_224 --num-classes 101 --classes classes.txt \
        --checkpoint vim_nano_patch16_224.caltech101.safetensors

`screen` and `confirm` take pictures of `val` that the model classifies rightly, as many of each
class, and never the same; `final` takes the pictures of `boxes.csv`, on which nothing is chosen;
`objects` asks of a CSV of boxes or masks alone how much of the relevance lies on the object.
Interrupted, the same command goes on. Printed are means with 95 % bootstrap intervals, and the
difference from `mambalrp` in per cent, drawn in pairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from machine import describe, pick_device
from numpy.typing import NDArray
from search_candidates import Changes, candidates_of
from search_denoising import DENOISED, OF_VMAMBA
from torch import nn

from vimlrp.cli.loading import load_model
from vimlrp.evaluation import (
    CompositeMethod,
    DataSet,
    Inference,
    Method,
    Plan,
    Results,
    Sample,
    Store,
    collect,
    method_named,
    metrics_named,
    read_data,
    reports,
    run,
)
from vimlrp.inputs import preprocessing_of
from vimlrp.models import class_names
from vimlrp.photos import read_photo

DEFAULT = "mambalrp"
PROTOCOLS = {"vim": ("zero_patch", "mean"), "vmamba": ("mean", "blur")}
OBJECTS = ("localisation:pixels", "localisation:patches", "pointing", "segmentation")
ABLATIONS = (
    "without_activation_rule",
    "without_norm_rule",
    "without_scan_rule",
    "without_gate_rule",
    "gradient_x_input",
)
OBJECT_PICTURES = 125
RESAMPLES = 2000


@dataclass(frozen=True)
class Stage:
    """How much is measured: pictures a class, those before them that are left out, and steps."""

    pictures: int
    skipped: int
    steps: int


STAGES = {"screen": Stage(6, 0, 5), "confirm": Stage(10, 6, 10), "final": Stage(4, 0, 10)}


def family_of(model: nn.Module) -> str:
    """Which candidates and protocols a model gets."""
    return "vim" if Inference(model).has_tokens else "vmamba"


def chosen(data: DataSet, model: nn.Module, stage: Stage) -> DataSet:
    """So many pictures of each class that the model classifies rightly, in the order of names."""
    inference, prepare = Inference(model), preprocessing_of(model)
    found: list[Sample] = []
    for label in range(getattr(model, "num_classes", 0)):
        right = 0
        for sample in (s for s in data.samples if s.label == label):
            x = prepare(read_photo(sample.path))[0][None].to(inference.device, inference.dtype)
            if int(inference(x).argmax()) != label:
                continue
            right += 1
            if right > stage.skipped:
                found.append(sample)
            if right == stage.skipped + stage.pictures:
                break
    return DataSet(tuple(found))


def difference(new: NDArray[np.float64], old: NDArray[np.float64]) -> tuple[float, float, float]:
    """The mean of `new` over that of `old`, less 1, in per cent, with its interval, in pairs."""
    place = np.random.default_rng(0).integers(0, len(new), (RESAMPLES, len(new)))
    drawn = 100 * (new[place].mean(1) / old[place].mean(1) - 1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(100 * (new.mean() / old.mean() - 1)), float(low), float(high)


def difference_table(results: Results) -> Iterator[str]:
    """dA^F of every protocol, and its difference from the default's, the best first."""
    reference = results.methods[DEFAULT].values
    columns = [key for key in reference if key.endswith("/delta_logit")]
    protocols = [key.partition(":")[2].partition("/")[0] for key in columns]
    yield "| method | " + " | ".join(f"ΔA^F, {name}" for name in protocols) + " | ms an image |"
    yield "|---|" + "---|" * (len(columns) + 1)
    order = sorted(results.methods.items(), key=lambda item: -item[1].values[columns[0]].mean())
    for name, found in order:
        cells = [_change(found.values[column], reference[column]) for column in columns]
        yield f"| {name} | {' | '.join(cells)} | {1e3 * found.costs[0].seconds:.0f} |"


def _change(new: NDArray[np.float64], old: NDArray[np.float64]) -> str:
    if new is old:
        return f"{new.mean():.3f}"
    change, low, high = difference(new, old)
    return f"{new.mean():.3f} ({change:+.1f} % [{low:+.1f}, {high:+.1f}])"


def methods_of(names: Sequence[str], candidates: Mapping[str, Changes]) -> dict[str, Method]:
    """Candidates, named composites and baselines by their names."""
    return {name: _method(name, candidates) for name in dict.fromkeys([DEFAULT, *names])}


def _method(name: str, candidates: Mapping[str, Changes]) -> Method:
    if name in candidates:
        return CompositeMethod(dict(candidates[name]))
    return {**DENOISED, **OF_VMAMBA}.get(name) or method_named(name)


def measure(plan: Plan, folder: Path) -> Results:
    """Measure method by method, so that an interruption leaves whole ones."""
    store = Store(folder, plan.settings())
    for name, method in plan.methods.items():
        run(replace(plan, methods={name: method}), store)
        print(f"{name}: done", flush=True)
    return collect(plan, store)


def report(results: Results, folder: Path) -> None:
    """Write everything, and print the tables."""
    reports.write(results, folder)
    print(reports.result_table(results))
    if any(key.endswith("/delta_logit") for key in results.methods[DEFAULT].values):
        print("\n".join(difference_table(results)))
    print(reports.cost_table(results))


def plans(
    stage: str, model: nn.Module, name: str, data: Path, methods: Mapping[str, Method]
) -> Iterator[tuple[str, Plan]]:
    """What is measured in a stage, by name: faithfulness, and in the end localisation too."""
    common = {"model": model, "model_name": name, "methods": methods, "batch_size": 20}
    if stage == "objects":
        yield "objects", objects_plan(read(data, model), common)
        return
    size, family = STAGES[stage], family_of(model)
    everything = read(data / ("boxes.csv" if stage == "final" else "val"), model)
    if stage == "final":
        yield "objects", objects_plan(everything.evenly(OBJECT_PICTURES), common)
    flipping = metrics_named(["flipping"], PROTOCOLS[family], size.steps)
    pictures = chosen(everything, model, size)
    yield "flipping", Plan(data=pictures, metrics=flipping, forward_size=60, **common)


def read(source: Path, model: nn.Module) -> DataSet:
    """Pictures of the model's classes."""
    return read_data(source, class_names(model), model.num_classes)  # type: ignore[arg-type]


def objects_plan(data: DataSet, common: Mapping[str, Any]) -> Plan:
    """How much of the relevance of the label lies on the object."""
    metrics = metrics_named([*OBJECTS, "conservation"], ())
    return Plan(data=data, metrics=metrics, target="label", **common)


@click.command()
@click.argument("stage", type=click.Choice([*STAGES, "objects"]))
@click.option("--model", "name", default="vim_nano_patch16_224.imagenette", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights to load instead.")
@click.option("--num-classes", type=int, help="Size of the checkpoint's classifier.")
@click.option("--classes", type=click.Path(path_type=Path), help="A file of their names.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--candidates", help="Separated by semicolons; all candidates by default.")
@click.option("--device", default="auto", show_default=True)
def main(
    stage: str,
    name: str,
    checkpoint: Path | None,
    num_classes: int | None,
    classes: Path | None,
    data: Path,
    out: Path,
    candidates: str | None,
    device: str,
) -> None:
    """Measure candidates in a STAGE and compare them with the default composite."""
    place = pick_device(device)
    print(describe(place))
    torch.manual_seed(0)
    model = load_model(name, checkpoint, "auto", num_classes, str(place), classes)
    family = family_of(model)
    known = candidates_of(model, family)
    everything = [*ABLATIONS, *known, *DENOISED, *(OF_VMAMBA if family == "vmamba" else ())]
    names = everything if candidates is None else candidates.split(";")
    methods = methods_of(names, known)
    for part, plan in plans(stage, model, name, data, methods):
        report(measure(plan, out / name / stage / part), out / name / stage / part)


if __name__ == "__main__":
    main()
