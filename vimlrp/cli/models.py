"""`vimlrp models`: what can be created by name."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import click
import timm
import torch
from rich.console import Console
from rich.table import Table

from vimlrp.guard import SUPPORTED_FAMILIES

__all__ = ["command", "model_names", "weights_of"]


def model_names() -> list[str]:
    """The names of vimlrp's models, with the tag of their weights where they have some."""
    names = [
        n
        for family in SUPPORTED_FAMILIES
        for n in timm.list_models(module=family, include_tags=True)
    ]
    return [name.removesuffix(".untrained") for name in names]


@click.command("models")
@click.argument("pattern", default="*")
def command(pattern: str) -> None:
    """List the models: parameters, input in pixels, and where their weights are.

    Weights are in the package, in the repository named on Hugging Face, or at a web address.

    PATTERN selects names, for example 'vim_tiny*'.
    """
    table = Table(box=None, pad_edge=False)
    for heading, side in (("model", "left"), ("size", "right"), ("input", "right")):
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("weights", overflow="fold")
    for name in _matching(pattern):
        table.add_row(*_row(name))
    Console().print(table)


def _matching(pattern: str) -> list[str]:
    found = [name for name in model_names() if fnmatchcase(name, pattern)]
    if not found:
        raise click.ClickException(f"no model matches {pattern!r}; 'vimlrp models' lists them all")
    return found


def _row(name: str) -> tuple[str, str, str, str]:
    with torch.device("meta"):
        model = timm.create_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    config: dict[str, Any] = vars(model)["pretrained_cfg"]
    _, height, width = config["input_size"]
    return name, f"{count / 1e6:.1f} M", f"{height} x {width}", weights_of(config)


def weights_of(config: dict[str, Any]) -> str:
    """Where the weights of a model come from.

    Args:
        config: Its pretrained configuration.
    """
    file = config.get("file")
    if file:
        return "in the package" if Path(file).is_file() else "missing from the package"
    if config.get("hf_hub_id"):
        return f"{config['hf_hub_id']}"
    return _site_of(config["url"]) if config.get("url") else "none"


def _site_of(url: str) -> str:
    """The host and the first folders of a web address, such as github.com/owner/repository."""
    address = urlparse(url)
    return "/".join([address.netloc, *address.path.split("/")[1:3]])
