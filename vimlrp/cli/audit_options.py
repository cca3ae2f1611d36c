"""What the commands of `vimlrp audit` share: their options, and an audit's beginning."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click
from torch import nn

from vimlrp.audit.stages import begin, check_model
from vimlrp.audit.workspace import Workspace
from vimlrp.cli.loading import UsageError, load_model, model_options
from vimlrp.evaluation.data import read_data
from vimlrp.evaluation.parts import Part
from vimlrp.models import class_names
from vimlrp.models.reading import Weights

__all__ = [
    "ADVICE",
    "Beginning",
    "begins",
    "decisions_option",
    "device_option",
    "out_option",
    "reopen",
    "workers_option",
]

ADVICE = (
    "the same command with a smaller --batch-size needs another folder or --overwrite, and a "
    "smaller model none"
)
_COMMAND = "command"


@dataclass(frozen=True)
class Beginning:
    """The options of commands that begin an audit, or go on with its first stages."""

    data: Path
    name: str
    checkpoint: Path | None
    weights: Weights
    num_classes: int | None
    device: str
    classes: Path | None
    layer: str | None
    only: str | None
    per_class: int | None
    limit: int | None
    batch_size: int
    seed: int
    overwrite: bool

    def open(self, out: Path) -> tuple[nn.Module, Workspace]:
        """Load the model, list the data, and make or open the folder.

        Args:
            out: The audit's folder.
        """
        model = load_model(
            self.name, self.checkpoint, self.weights, self.num_classes, self.device, self.classes
        )
        count = getattr(model, "num_classes", 0)
        if not count:
            raise UsageError(f"{self.name} classifies nothing; audit a model with a classifier")
        data = read_data(self.data, class_names(model), count)
        data = data if self.limit is None else data.evenly(self.limit)
        words = None if self.only is None else self.only.split(",")
        workspace = begin(
            model,
            data,
            out,
            batch_size=self.batch_size,
            layer=self.layer,
            classes=None if words is None else [word.strip() for word in words if word.strip()],
            per_class=self.per_class,
            seed=self.seed,
            overwrite=self.overwrite,
        )
        workspace.parts[_COMMAND] = Part({}, facts=self._facts())
        return model, workspace

    def _facts(self) -> dict[str, Any]:
        """How the model is loaded again by the stages that follow."""
        return {
            "name": self.name,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint.absolute()),
            "weights": self.weights,
            "num_classes": self.num_classes,
            "classes": None if self.classes is None else str(self.classes.absolute()),
        }


def reopen(out: Path, device: str) -> tuple[nn.Module, Workspace]:
    """The audit that a folder holds, and its model.

    Args:
        out: The audit's folder.
        device: Where the model shall run.

    Raises:
        InputError: If the folder holds no audit, or its model has other weights now.
    """
    workspace = Workspace.existing(out)
    if _COMMAND not in workspace.parts:
        raise UsageError(
            f"{out} does not say which model it audits: run 'vimlrp audit' on it again"
        )
    facts = dict(workspace.parts[_COMMAND].facts)
    for key in ("checkpoint", "classes"):
        facts[key] = None if facts[key] is None else Path(facts[key])
    model = load_model(device=device, **facts)
    check_model(workspace, model)
    return model, workspace


out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("audit"),
    show_default=True,
    help="The audit's folder.",
)
device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...")
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes to screen in.",
)
decisions_option = click.option(
    "--decisions",
    type=click.Path(path_type=Path),
    help="What was accepted and rejected in the report, as its button exports it.",
)

_Command = Callable[..., None]


def begins(command: _Command) -> _Command:
    """Give a command the options of `Beginning`, which it gets as one argument, and `out`.

    Args:
        command: With the parameters `beginning` and `out`.
    """
    own = [field.name for field in fields(Beginning)]

    @wraps(command)
    def wrapped(**options: Any) -> None:
        beginning = Beginning(**{name: options.pop(name) for name in own})
        command(beginning=beginning, **options)

    number = click.IntRange(min=1)
    for option in reversed(
        (
            click.argument("data", type=click.Path(path_type=Path)),
            model_options,
            click.option("--layer", help="Whose channels are recorded; see docs/audit.md."),
            click.option(
                "--only", help="Audit these classes alone: names or indices, with commas."
            ),
            click.option("--per-class", type=number, help="At most so many pictures of each."),
            click.option("--limit", type=number, help="So many pictures in all, evenly drawn."),
            click.option("--batch-size", type=number, default=32, show_default=True),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
            click.option("--overwrite", is_flag=True, help="Replace an audit of other settings."),
            out_option,
        )
    ):
        wrapped = option(wrapped)
    return wrapped
