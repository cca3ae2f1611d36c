"""`vimlrp doctor`: what is usable here, and why not."""

import importlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vimlrp.cli.models import model_names, weights_of
from vimlrp.kernels import backends
from vimlrp.kernels.backends import VARIABLE, choose
from vimlrp.kernels.extension import EXTENSION

__all__ = ["command"]

_PACKAGES = ("vimlrp", "torch", "torchvision", "timm", "opencv-python", "numpy")
_EXTRAS = (
    ("mamba-ssm", "mamba-ssm", EXTENSION, "the scan backend mamba_ssm"),
    ("mamba-ssm", "causal-conv1d", "causal_conv1d", "for the official models, unused by vimlrp"),
    ("plot", "matplotlib", "matplotlib", "plots of check_conservation and curves of evaluate"),
    ("baselines", "captum", "captum", "SmoothGrad, integrated gradients, occlusion"),
    ("baselines", "grad-cam", "pytorch_grad_cam", "Grad-CAM"),
    ("audit", "imagehash", "imagehash", "copies of pictures in audits"),
    ("audit", "scipy", "scipy", "statistics of audits"),
    ("audit", "scikit-learn", "sklearn", "clusters in audits"),
    ("audit", "jinja2", "jinja2", "reports of audits"),
    ("audit", "h5py", "h5py", "audits for ViRelAy"),
)
# Their builds read the PyTorch that is installed.
_FLAGS = {"mamba-ssm": " --no-build-isolation"}

Line = tuple[str, bool | None, str]


@click.command("doctor")
def command() -> None:
    """Say which kernels, devices, weights and extras are usable here, and why not."""
    console = Console()
    for title, lines in (
        ("versions", _versions()),
        ("devices", _devices()),
        ("scan kernels", _kernels()),
        ("weights in the package", _weights()),
        ("extras", _extras()),
    ):
        table = Table(
            title=title, title_justify="left", box=None, show_header=False, pad_edge=False
        )
        for name, usable, why in lines:
            table.add_row(_MARKS[usable], name, escape(why))
        console.print(table)
        console.print()


_MARKS = {True: "[green]yes[/]", False: "[red]no[/]", None: "   "}


def _versions() -> Iterator[Line]:
    yield "python", None, f"{platform.python_version()} on {platform.platform(terse=True)}"
    for package in _PACKAGES:
        yield package, None, _installed(package) or "missing"


def _devices() -> Iterator[Line]:
    yield "cpu", True, f"{torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch is a build without CUDA" if built is None else "no CUDA device was found"
        yield "cuda", False, why
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        yield f"cuda:{index}", True, f"{properties.name}, {memory:.0f} GiB"


def _kernels() -> Iterator[Line]:
    for backend in backends():
        yield backend.name, backend.usable, backend.reason
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = choose("auto", device, torch.float32)
    forced = os.environ.get(VARIABLE)
    origin = f"forced by {VARIABLE}" if forced else f"{VARIABLE} forces another"
    yield "auto", None, f"takes {chosen} for tensors on {device.type} ({origin})"


def _weights() -> Iterator[Line]:
    import timm

    for name in model_names():
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.file:
            place = weights_of(config.to_dict())
            yield name, place == "in the package", place


def _extras() -> Iterator[Line]:
    for extra, package, module, purpose in _EXTRAS:
        found = _installed(package)
        if found is None:
            line = f"pip install 'vimlrp[{extra}]'{_FLAGS.get(extra, '')}"
            yield package, False, f"{purpose}: {line}"
            continue
        try:
            importlib.import_module(module)
        except ImportError as error:
            yield package, False, f"{found} is installed and does not import: {error}"
        else:
            yield package, True, f"{found}, {purpose}"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
