"""What a benchmark ran on, in the line that heads its table."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" takes the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def describe(device: torch.device) -> str:
    """Machine, versions, date and command."""
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "triton", "timm"))
    command = shlex.join(["python", *sys.argv])
    return (
        f"{_machine(device)}; Python {platform.python_version()}, {packages}; "
        f"{datetime.now(UTC):%Y-%m-%d}; `{command}`\n"
    )


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
