"""What verbs of the command line share: options of the model, its loading, progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import timm
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from vimlrp.cli.models import model_names
from vimlrp.errors import InputError, VimLRPError
from vimlrp.models import name_classes
from vimlrp.models.checkpoint import load_checkpoint
from vimlrp.models.reading import Weights

__all__ = [
    "DEFAULT_MODEL",
    "UsageError",
    "failures_told",
    "load_model",
    "model_options",
    "progress_bar",
    "progress_of",
]

DEFAULT_MODEL = "vim_nano_patch16_224.imagenette"

_Command = TypeVar("_Command", bound=Callable[..., Any])


class UsageError(click.ClickException):
    """Nothing could start: exit code 2."""

    exit_code = 2


def model_options(command: _Command) -> _Command:
    """Give a command the options that choose a model; `load_model` takes their values.

    Args:
        command: With the parameters `name`, `checkpoint`, `weights`, `num_classes`, `classes` and
            `device`.
    """
    options = (
        click.option(
            "--model",
            "name",
            default=DEFAULT_MODEL,
            show_default=True,
            help="See 'vimlrp models'; timm's too.",
        ),
        click.option(
            "--checkpoint", type=click.Path(path_type=Path), help="Weights to load instead."
        ),
        click.option(
            "--weights",
            type=click.Choice(["auto", "model", "model_ema"]),
            default="auto",
            show_default=True,
            help="Which weights of a training checkpoint.",
        ),
        click.option("--num-classes", type=int, help="Size of the checkpoint's classifier."),
        click.option(
            "--classes",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Names of the classes, one a line, in the order of the logits.",
        ),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ..."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def load_model(
    name: str,
    checkpoint: Path | None,
    weights: Weights,
    num_classes: int | None,
    device: str,
    classes: Path | None = None,
) -> nn.Module:
    """Create a model with its weights, in evaluation mode on its device.

    Args:
        name: Of a timm model.
        checkpoint: A file of weights to load instead of the pretrained ones.
        weights: Which of the file's.
        num_classes: Size of the file's classifier.
        device: A device, or "auto" for a GPU where there is one.
        classes: A file of the classes' names, one a line.

    Raises:
        UsageError: If there is no such model, device or file of weights or names.
        CheckpointError: If the file does not fit.
    """
    if not timm.is_model(name):
        near = ", ".join(model_names())
        raise UsageError(f"there is no model {name!r}; vimlrp has {near}, and timm has others")
    if num_classes is not None and checkpoint is None:
        raise UsageError("--num-classes is the size of a --checkpoint's classifier; give both")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        model: nn.Module = timm.create_model(name, pretrained=checkpoint is None, **options)
    except RuntimeError as error:
        raise UsageError(f"{error}; 'vimlrp models' lists the names") from error
    except OSError as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"cannot get the weights of {name} ({reason}): load a file of them with --checkpoint"
        ) from error
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, weights=weights)
    if classes is not None:
        _name_classes(model, classes)
    return model.eval().to(_device(device))


def _name_classes(model: nn.Module, file: Path) -> None:
    try:
        text = file.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {file} cannot be read as UTF-8 text: {error}") from error
    try:
        name_classes(model, [line.strip() for line in text.splitlines()])
    except InputError as error:
        raise UsageError(f"--classes {file}: {error}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot use the device {name!r}: {error}") from error
    return device


def progress_bar(console: Console) -> Progress:
    """A bar with counts and the time that remains, gone when it is done.

    Args:
        console: Where to show it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def progress_of(bar: Progress, title: str) -> Callable[[int, int, str], None]:
    """A function that long runs tell how far they are, shown by a bar.

    Args:
        bar: Of `progress_bar`.
        title: Shown until it is told something.
    """
    task = bar.add_task(title)

    def tell(done: int, total: int, text: str) -> None:
        bar.update(task, completed=done, total=total, description=text)

    return tell


@contextmanager
def failures_told(console: Console, out: Path, advice: str) -> Iterator[None]:
    """Turn what a run that can be resumed may raise into a message and an exit code.

    Args:
        console: Where to say that the run was interrupted.
        out: The folder that the run writes to.
        advice: What to do where the device has too little memory.
    """
    try:
        yield
    except VimLRPError as error:
        raise UsageError(str(error)) from error
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
        raise UsageError(f"the device has too little memory ({reason}): {advice}") from error
    except OSError as error:
        raise UsageError(f"{out} cannot be written to ({error}); what is there stays") from error
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on from what {out} holds")
        raise click.exceptions.Exit(130) from None
