"""Train small classifiers, such as those whose weights come with vimlrp.

    python demos/training/train_classifier.py --data imagenette128.zip --out runs/vim

trains on one GPU in minutes (on a CPU in days); `torchrun --nproc-per-node 4` before the script
shares every batch among four. Interrupted, or stopped by --minutes, the same command goes on from
the last checkpoint, and the pieces add up to what one run computes: bit for bit on a CPU, up to the
order of a GPU's sums there. A checkpoint is files of about 15 MiB at most, all of which have to be
there to go on. The results are the averaged (EMA) weights in float16 and a record of what they
reach and how they were made.

Both models that come with vimlrp; the second one learns from the first, too:

    TRAIN="demos/training/train_classifier.py --data imagenette128.zip"
    VMAMBA="--model vmamba_nano_s1l8_224 --out runs/vmamba"
    TEACHER=runs/vmamba/vmamba_nano_s1l8_224.imagenette.safetensors
    VIM="--model vim_nano_patch16_224 --out runs/vim --teacher $TEACHER --compile"

    python $TRAIN $VMAMBA --measure 9              # prints how many epochs fit into 9 minutes: E
    python $TRAIN $VMAMBA --epochs E --minutes 5   # repeat until it has reached epoch E
    torchrun --nproc-per-node 2 $TRAIN $VIM --epochs E

Other pictures come as --data FOLDER with train/ and val/ and a folder a class in both.
"""

import hashlib
import json
import math
import platform
import re
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import timm
import torch
from checkpoints import CheckpointError
from safetensors.torch import load_file, save_file
from team import join
from torch import Tensor, nn
from training_data import DataError, Split, as_cropped_file, as_squashed, load
from training_loop import RecipeError, Training, create
from training_recipes import recipe_of

from vimlrp.models.labels import IMAGENETTE

_SQUASHED = "squashed to {size}"
_CROPPED = "resized to {margin}, centre {size}"
PROTOCOLS = {_CROPPED: as_cropped_file, _SQUASHED: as_squashed}
# Epochs between two checkpoints with a look at the accuracy.
_OFTEN = 20


@torch.no_grad()
def evaluate(model: nn.Module, data: Split, protocol: str = _CROPPED) -> Tensor:
    """Whether each image of a split is classified rightly, (M,) bool, in float32."""
    verdicts = []
    for first in range(0, len(data), 256):
        chosen = slice(first, first + 256)
        prepared = PROTOCOLS[protocol](data.images[chosen], _side(model))
        verdicts.append(model(prepared).argmax(1) == data.labels[chosen])
    return torch.cat(verdicts)


def scores(model: nn.Module, data: Split) -> dict[str, Any]:
    """Top-1 of every protocol in per cent, over all images and per class."""
    result: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        right = evaluate(model, data, protocol)
        per_class = {
            name: round(100 * float(right[data.labels == i].float().mean()), 2)
            for i, name in enumerate(class_names(data))
        }
        side = _side(model)
        title = protocol.format(margin=round(side / 0.875), size=side)
        result[title] = {"top1": _per_cent(right), "per_class": per_class}
    return result


def class_names(data: Split) -> tuple[str, ...]:
    """Names of the classes: Imagenette's in words, others as their folders."""
    synsets = all(re.fullmatch(r"n\d{8}", name) for name in data.names)
    return IMAGENETTE if synsets and len(data.names) == len(IMAGENETTE) else data.names


def _side(model: nn.Module) -> int:
    """The side of the images that a model is made for."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return int(config["input_size"][-1])


def _per_cent(right: Tensor) -> float:
    return round(100 * float(right.float().mean()), 2)


def write_results(training: Training, data: Split, out: Path, tag: str) -> None:
    """Write the averaged weights in float16, and the record of exactly those weights."""
    name = training.recipe.model
    half = {k: v.half().contiguous().cpu() for k, v in training.average.state_dict().items()}
    weights = out / f"{name}.{tag}.safetensors"
    save_file(half, weights)
    model = load_trained(weights, name, training.recipe.classes).to(training.device)
    accuracy = scores(model, data)
    record = {
        "model": name,
        "images": len(data),
        "accuracy": accuracy,
        "top1_without_averaging": _per_cent(evaluate(training.model.eval(), data)),
        "class_names": class_names(data),
        "recipe": training.recipe.as_json(),
        "gpus": training.team.size,
        "epochs_done": training.epoch,
        "command": shlex.join(
            ["python", f"demos/training/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        ),
        "versions": _versions(training.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round(sum(entry["seconds"] for entry in training.log) / 60, 2),
        "bytes": weights.stat().st_size,
        "sha256": _digest(weights),
    }
    (out / f"{name}.{tag}.json").write_text(json.dumps(record, indent=2) + "\n")
    top1 = ", ".join(f"{score['top1']} % {protocol}" for protocol, score in accuracy.items())
    print(f"wrote {weights}, {weights.stat().st_size / 1e6:.1f} MB: top-1 {top1}", flush=True)


def load_trained(weights: Path, name: str, classes: int = 10) -> nn.Module:
    """A model with weights that `write_results` wrote, in evaluation mode."""
    model = create(name, classes)
    model.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    return model.eval()


def load_teacher(weights: Path) -> nn.Module:
    """The model whose record lies beside its weights."""
    record = weights.with_suffix(".json")
    if not weights.exists() or not record.exists():
        raise click.ClickException(
            f"--teacher takes weights that this script wrote, with their record beside them; "
            f"there is no {record if weights.exists() else weights}."
        )
    made = json.loads(record.read_text())
    return load_trained(weights, made["model"], made["recipe"].get("classes", 10))


def _command(gpus: int) -> str:
    launcher = ["python"] if gpus == 1 else ["torchrun", "--nproc-per-node", str(gpus)]
    return shlex.join([*launcher, f"demos/training/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _versions(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": name or "cpu",
    }


def train(
    training: Training, data: Split, val: Split, out: Path, end: float, compact: bool
) -> None:
    """Run epochs until the recipe or the time is over; a line and a checkpoint on the way."""
    last = training.recipe.epochs
    seconds = 0.0
    while training.epoch < last and _in_time(training, time.monotonic() + seconds < end):
        start = time.monotonic()
        loss = training.run_epoch(data)
        seconds = time.monotonic() - start
        entry = {"epoch": training.epoch, "loss": loss, "seconds": seconds}
        often = training.epoch % _OFTEN == 0 or training.epoch == last
        if often and training.team.leads:
            entry["top1"] = _per_cent(evaluate(training.average, val))
        training.log.append(entry)
        if not training.team.leads:
            continue
        if often:
            training.save(out, compact)
        speed = len(data) / seconds
        top1 = f", EMA top-1 {entry['top1']:.2f} %" if often else ""
        line = f"epoch {training.epoch} at {training.size} px: loss {loss:.4f}"
        print(f"{line}, {speed:.0f} images/s{top1}", flush=True)
    if training.team.leads:
        training.save(out, compact)


def _in_time(training: Training, wish: bool) -> bool:
    return training.team.agree(wish, training.device)


def measure(training: Training, data: Split, minutes: float, steps: int = 20) -> int:
    """How many epochs of the recipe fit into minutes, from a few steps at every size."""
    recipe = training.recipe
    starts = [*(start for start, _ in recipe.sizes), 1.0]
    cost = 0.0  # seconds of a mean epoch
    for (begin, size), end in zip(recipe.sizes, starts[1:], strict=True):
        step = _seconds_a_step(training, data, size, steps)
        epoch = len(data) // recipe.batch * step
        cost += (end - begin) * epoch
        print(f"{size} px: {recipe.batch / step:.0f} images/s, {epoch:.2f} s an epoch", flush=True)
    fit = int(60 * minutes / cost)
    print(f"{fit} epochs fit into {minutes:g} minutes, without start and evaluation", flush=True)
    return fit


def _seconds_a_step(training: Training, data: Split, size: int, steps: int) -> float:
    training.model.train()
    training.prepare(size)
    images, labels = next(data.batches(training.recipe.batch, training.shuffler))
    start = 0.0
    for step in range(5 + steps):
        if step == 5:  # compiled and warm
            start = time.monotonic()
        # Reading the loss waits for the GPU.
        float(training.step(images, labels, 0.0))
    return (time.monotonic() - start) / steps


def load_val(path: Path, train_split: Split, device: torch.device) -> Split:
    """The other split, of the same classes."""
    try:
        val = load(path, "val", device)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    if val.names != train_split.names:
        different = sorted(set(val.names) ^ set(train_split.names))
        raise click.ClickException(
            f"train/ and val/ of {path} differ in their classes: {', '.join(different)}"
        )
    return val


def compile_mixers(model: nn.Module) -> None:
    """Compile the part of the blocks that is alike, so that one compilation serves them all."""
    for module in model.modules():
        if type(module).__name__ in ("BidirectionalMixer", "SS2D"):
            module.compile()


_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@click.command()
@click.option("--model", "name", default="vim_nano_patch16_224", show_default=True)
@click.option("--tag", default="imagenette", show_default=True, help="Names the results.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Zip file or folder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of results.")
@click.option("--epochs", type=click.IntRange(1), help="Length of the schedule; the recipe's own.")
@click.option("--minutes", default=math.inf, help="Stop after these; run again to go on.")
@click.option("--batch", type=click.IntRange(1), help="Images a step; the recipe's own.")
@click.option("--learning-rate", type=float, help="Peak; the recipe's own.")
@click.option("--size", type=click.IntRange(16), help="One image size for the whole schedule.")
@click.option("--seed", default=0, show_default=True)
@click.option("--teacher", type=click.Path(path_type=Path), help="Weights to learn from, too.")
@click.option("--device", default=_DEVICE, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile the model with torch.compile.")
@click.option("--graphs/--no-graphs", default=True, help="On a GPU, replay CUDA graphs.")
@click.option("--compact", is_flag=True, help="Checkpoints with moments in bfloat16.")
@click.option("--measure", "measured", type=float, help="Only say how much fits into minutes.")
def main(
    name: str,
    tag: str,
    data: Path,
    out: Path,
    epochs: int | None,
    minutes: float,
    batch: int | None,
    learning_rate: float | None,
    size: int | None,
    seed: int,
    teacher: Path | None,
    device: str,
    compiled: bool,
    graphs: bool,
    compact: bool,
    measured: float | None,
) -> None:
    """Train a model and write its weights and their record."""
    team = join()
    end = time.monotonic() + 60 * minutes
    taught = None if teacher is None else load_teacher(teacher)
    where = torch.device(device)
    torch.set_float32_matmul_precision("high")
    try:
        train_split = load(data, "train", where)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    recipe = recipe_of(
        name, classes=len(train_split.names), epochs=epochs, batch=batch, seed=seed,
        learning_rate=learning_rate,
        sizes=None if size is None else ((0.0, size),),
        teacher=None if teacher is None else _digest(teacher),
    )  # fmt: skip
    try:
        training = Training(recipe, where, taught, graphs and where.type == "cuda", team)
        resumed = measured is None and training.resume(out)
    except (CheckpointError, RecipeError) as error:
        raise click.ClickException(str(error)) from error
    if compiled:
        compile_mixers(training.model)
    if measured is not None:
        measure(training, train_split, measured)
        return
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'going on' if resumed else 'starting'} at epoch {training.epoch}", flush=True)
    val = load_val(data, train_split, where)
    train(training, train_split, val, out, end, compact)
    if team.leads:
        write_results(training, val, out, tag)


if __name__ == "__main__":
    main()
