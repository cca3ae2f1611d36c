"""Train the Vim-nano classifier whose weights come with vimlrp.

    python demos/train_imagenette.py --data imagenette128.zip --out runs/imagenette

trains on one GPU in minutes (on a CPU in days). Interrupted, or stopped by --minutes, the same
command goes on from the last whole epoch. The results are the averaged (EMA) weights in float16
and a record of what they reach and how they were made.
"""

import hashlib
import json
import math
import platform
import random
import shlex
import sys
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from imagenette_data import (
    CLASSES,
    DataError,
    Split,
    as_cropped_file,
    as_squashed,
    augment,
    load,
    mix,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from vimlrp.models.labels import IMAGENETTE

NAME = "vim_nano_patch16_224"
PROTOCOLS = {"resized to 256, centre 224": as_cropped_file, "squashed to 224": as_squashed}


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, apart from data and versions."""

    epochs: int
    seed: int
    batch: int
    learning_rate: float = 1.25e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    mixed: float = 0.8
    average: float = 0.999
    clip: float = 1.0


class Training:
    """Model, its average, optimiser and progress: what a checkpoint holds.

    Args:
        recipe: What to do.
        device: Where.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.epoch = recipe, device, 0
        model = timm.create_model(NAME, num_classes=CLASSES, drop_path_rate=recipe.drop_path)
        self.model = model.to(device)
        self.average = deepcopy(self.model).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(_groups(self.model, recipe), fused=device.type == "cuda")
        self.generator, self.dice = torch.Generator(device), random.Random()  # noqa: S311
        self.log: list[dict[str, float]] = []

    def run_epoch(self, data: Split) -> float:
        """Train over the data once; the mean loss."""
        self._seed()
        self.model.train()
        steps = len(data) // self.recipe.batch
        total = torch.zeros((), device=self.device)
        batches = data.batches(self.recipe.batch, self.generator)
        for step, (images, labels) in enumerate(batches):
            self._set_rate((self.epoch + step / steps) / self.recipe.epochs)
            total += self._step(images, labels)
            self._update_average(self.epoch * steps + step)
        self.epoch += 1
        return float(total / steps)

    def _seed(self) -> None:
        """Seed by epoch, so that a resumed training draws what an uninterrupted one draws."""
        seed = 1_000_003 * self.recipe.seed + self.epoch
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        self.dice.seed(seed)

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        images = augment(images, 224, self.generator)
        targets = F.one_hot(labels, CLASSES).float()
        if self.dice.random() < self.recipe.mixed:
            images, targets = mix(images, targets, self.dice.random() < 0.5, self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            logits = self.model(images)
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimiser.step()
        return loss.detach()

    def _set_rate(self, progress: float) -> None:
        """Linear warm-up, then a cosine to a hundredth."""
        warmup = self.recipe.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, progress - warmup) / (1 - warmup)))
        factor = min(1.0, progress / warmup + 1e-3) * max(0.01, cosine)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * factor

    def _update_average(self, step: int) -> None:
        """Move the average towards the weights; faster at first, when they are still random."""
        rate = 1 - min(self.recipe.average, (1 + step) / (10 + step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        averages, weights = map(list, zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, [w.detach() for w in weights], rate)

    def save(self, path: Path) -> None:
        """Write a checkpoint whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "epoch": self.epoch,
            "log": self.log,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise click.ClickException(
                f"{path} was made with {state['recipe']}, and this command asks for "
                f"{asdict(self.recipe)}. Repeat the first command, or choose another --out."
            )
        self.epoch, self.log = state["epoch"], state["log"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices alone."""
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    named = list(model.named_parameters())
    kept = [p for name, p in named if p.dim() > 1 and name not in exempt]
    free = [p for name, p in named if p.dim() <= 1 or name in exempt]
    return [
        {"params": kept, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


@torch.no_grad()
def evaluate(model: nn.Module, data: Split, protocol: str) -> Tensor:
    """Whether each image of a split is classified rightly, (M,) bool, in float32."""
    verdicts = []
    for first in range(0, len(data), 256):
        chosen = slice(first, first + 256)
        prepared = PROTOCOLS[protocol](data.images[chosen], 224)
        verdicts.append(model(prepared).argmax(1) == data.labels[chosen])
    return torch.cat(verdicts)


def scores(model: nn.Module, data: Split) -> dict[str, Any]:
    """Top-1 of every protocol in per cent, over all images and per class."""
    result: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        right = evaluate(model, data, protocol)
        per_class = {
            name: round(100 * float(right[data.labels == i].float().mean()), 2)
            for i, name in enumerate(IMAGENETTE)
        }
        top1 = round(100 * float(right.float().mean()), 2)
        result[protocol] = {"top1": top1, "per_class": per_class}
    return result


def write_results(training: Training, data: Split, out: Path) -> None:
    """Write the averaged weights in float16, and the record of exactly those weights."""
    half = {k: v.half().contiguous().cpu() for k, v in training.average.state_dict().items()}
    weights = out / f"{NAME}.imagenette.safetensors"
    save_file(half, weights)
    model = timm.create_model(NAME, num_classes=CLASSES)
    model.load_state_dict({k: v.float() for k, v in half.items()})
    accuracy = scores(model.to(training.device).eval(), data)
    record = {
        "model": NAME,
        "images": len(data),
        "accuracy": accuracy,
        "recipe": asdict(training.recipe),
        "epochs_done": training.epoch,
        "command": shlex.join(["python", f"demos/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "versions": _versions(training.device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round(sum(entry["seconds"] for entry in training.log) / 60, 2),
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (out / f"{NAME}.imagenette.json").write_text(json.dumps(record, indent=2) + "\n")
    top1 = ", ".join(f"{score['top1']} % {protocol}" for protocol, score in accuracy.items())
    print(f"wrote {weights}, {weights.stat().st_size / 1e6:.1f} MB: top-1 {top1}", flush=True)


def _versions(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": name or "cpu",
    }


def train(training: Training, data: Split, val: Split, out: Path, minutes: float) -> None:
    """Run epochs until the recipe or the minutes are over; a line and a checkpoint on the way."""
    begin = time.monotonic()
    while training.epoch < training.recipe.epochs and time.monotonic() - begin < 60 * minutes:
        start = time.monotonic()
        loss = training.run_epoch(data)
        seconds = time.monotonic() - start
        entry = {"epoch": training.epoch, "loss": loss, "seconds": seconds}
        if training.epoch % 20 == 0 or training.epoch == training.recipe.epochs:
            right = evaluate(training.average, val, next(iter(PROTOCOLS)))
            entry["top1"] = 100 * float(right.float().mean())
        training.log.append(entry)
        if "top1" in entry:
            training.save(out / "checkpoint.pt")
        speed = len(data) / seconds
        top1 = f", EMA top-1 {entry['top1']:.2f} %" if "top1" in entry else ""
        print(f"epoch {training.epoch}: loss {loss:.4f}, {speed:.0f} images/s{top1}", flush=True)
    training.save(out / "checkpoint.pt")


def compile_mixers(model: nn.Module) -> None:
    """Compile the part of the blocks that is alike, so that one compilation serves them all."""
    for layer in model.get_submodule("layers").children():
        layer.get_submodule("mixer").compile()


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Zip file or folder.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of results.")
@click.option("--epochs", default=300, show_default=True, help="Length of the schedule.")
@click.option("--minutes", default=math.inf, help="Stop after these; run again to go on.")
@click.option("--batch", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Compile the model with torch.compile.")
def main(
    data: Path,
    out: Path,
    epochs: int,
    minutes: float,
    batch: int,
    seed: int,
    device: str,
    compiled: bool,
) -> None:
    """Train Vim-nano on Imagenette and write its weights and their record."""
    try:
        splits = {s: load(data, s, torch.device(device)) for s in ("train", "val")}
    except DataError as error:
        raise click.ClickException(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    training = Training(Recipe(epochs, seed, batch), torch.device(device))
    if (out / "checkpoint.pt").exists():
        training.resume(out / "checkpoint.pt")
    if compiled:
        compile_mixers(training.model)
    train(training, splits["train"], splits["val"], out, minutes)
    write_results(training, splits["val"], out)


if __name__ == "__main__":
    main()
