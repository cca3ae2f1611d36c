"""Which backends of the selective scan can run here, and which one a call gets."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vimlrp.errors import KernelError
from vimlrp.kernels import compiled, extension

__all__ = ["VARIABLE", "Backend", "backends", "choose"]

# Forces a backend for every call that leaves the choice open.
VARIABLE = "VIMLRP_BACKEND"


@dataclass(frozen=True)
class Backend:
    """One backend, as this machine sees it.

    Attributes:
        name: What `selective_scan(backend=...)` and the environment variable accept.
        usable: Whether it can run here.
        reason: Why, or why not, in one sentence.
    """

    name: str
    usable: bool
    reason: str


def backends() -> tuple[Backend, ...]:
    """Every backend with a verdict for this machine, the slow twin first.

    Example:
        >>> [backend.name for backend in backends()]
        ['reference', 'cpu', 'native', 'triton', 'mamba_ssm']
    """
    return tuple(Backend(name, *verdict()) for name, verdict in _VERDICTS.items())


# The choice is fixed for a compiled graph, so torch.compile need not look inside.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that a call gets.

    Args:
        name: "auto", or the name of a backend.
        device: Where the inputs lie.
        dtype: The dtype of state and accumulation.

    Returns:
        The name of a usable backend. "auto" takes the environment variable's where it is set,
        else the fastest one for the device.

    Raises:
        KernelError: If the name is unknown, or the backend cannot take this device or dtype.
    """
    if name == "auto":
        name = os.environ.get(VARIABLE, "auto")
    if name == "auto":
        return _fastest(device, dtype)
    if name not in _VERDICTS:
        raise KernelError(f"There is no backend {name!r}. {_choices()}")
    obstacle = _obstacle(name, device, dtype)
    if obstacle:
        raise KernelError(
            f"The scan backend {name!r} cannot take this call: {obstacle}. {_choices()}"
        )
    return name


def _fastest(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cpu":
        return "cpu" if _obstacle("native", device, dtype) else "native"
    return "reference" if _obstacle("triton", device, dtype) else "triton"


def _obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why a backend cannot take a call; empty if it can."""
    if name == "reference":
        return ""
    usable, reason = _VERDICTS[name]()
    if not usable:
        return reason
    if dtype == torch.float64 and name != "cpu":
        return "an input is float64, and its state is float32"
    on_gpu = name in {"triton", "mamba_ssm"}
    kind, place = ("cuda", "on a CUDA GPU") if on_gpu else ("cpu", "on the CPU")
    if device.type == kind or (name == "triton" and _interpreted()):
        return ""
    return f"the inputs lie on {device}, and it needs them {place}"


def _interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton() -> tuple[bool, str]:
    if importlib.util.find_spec("triton") is None:
        return False, "the package triton is not installed; run `pip install triton`"
    if _interpreted():
        return True, "Triton's interpreter, on the CPU, because TRITON_INTERPRET=1"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA GPU"
    return True, f"compiles for {torch.cuda.get_device_name()}"


# Whether each backend can run here, and why.
_VERDICTS: dict[str, Callable[[], tuple[bool, str]]] = {
    "reference": lambda: (True, "plain PyTorch, runs on any device"),
    "cpu": lambda: (True, "blocked PyTorch loop, runs on any CPU"),
    "native": compiled.status,
    "triton": _triton,
    "mamba_ssm": extension.status,
}


def _choices() -> str:
    listed = ", ".join(f"{b.name} ({'usable' if b.usable else b.reason})" for b in backends())
    return f"Choose 'auto' or one of: {listed}; argument `backend` or variable {VARIABLE}."
