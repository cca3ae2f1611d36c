"""VMamba's logits as the official code computes them; README.md beside this file says how.

No weights are stored: they and the images are drawn from numpy's frozen MT19937 stream, as whole
numbers scaled by float32 constants, so that they are the same bits on every machine.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

import vimlrp  # noqa: F401  (registers the models)

FILE = Path(__file__).parent / "vmamba.safetensors"

CASES: dict[str, dict[str, Any]] = {
    "v2": {"model": "test_vmamba", "size": (64, 64), "images": 2},
    "v2 not square": {"model": "test_vmamba", "size": (64, 96), "images": 1},
    "v2 odd maps": {"model": "test_vmamba", "size": (72, 50), "images": 1},
    "v2 wide scan": {
        "model": "test_vmamba",
        "options": {"ssm_ratio": 2.0, "d_state": 3},
        "size": (32, 64),
        "images": 1,
    },
    "v0": {"model": "test_vmamba_v0", "size": (64, 64), "images": 2},
    "v0 not square": {"model": "test_vmamba_v0", "size": (96, 32), "images": 1},
    "v0 odd maps": {"model": "test_vmamba_v0", "size": (72, 50), "images": 1},
    "tiny s1l8": {"model": "vmamba_tiny_s1l8_224", "size": (224, 224), "images": 1},
    "tiny s2l5": {"model": "vmamba_tiny_s2l5_224", "size": (64, 96), "images": 1},
    "vanilla tiny": {"model": "vanilla_vmamba_tiny_224", "size": (96, 64), "images": 1},
}
"""The registered model, its changed options, and the images of each case."""

SMALL = tuple(name for name, case in CASES.items() if case["model"].startswith("test_"))


@dataclass(frozen=True)
class VMambaGolden:
    """A model with drawn weights, its images, and the official logits in float64."""

    model: nn.Module
    input: Tensor
    logits: Tensor


def read_vmamba(name: str) -> VMambaGolden:
    """Build the model of a case and draw its weights and images."""
    model = timm.create_model(CASES[name]["model"], **_options(name)).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict(drawn_vmamba_state(shapes))
    with safe_open(FILE, "pt") as file:
        logits = file.get_tensor(name)
        assert json.loads(file.metadata()[name]) == json.loads(json.dumps(CASES[name]))
    return VMambaGolden(model, drawn_vmamba_input(name), logits)


def _options(name: str) -> dict[str, Any]:
    small = {"num_classes": 10} if name in SMALL else {}
    return {**small, **CASES[name].get("options", {})}


def drawn_vmamba_input(name: str) -> Tensor:
    """The images of a case, (B, 3, H, W), uniform in [-2, 2)."""
    case = CASES[name]
    return _uniform((case["images"], 3, *case["size"]), np.random.RandomState(1)) * 2


def drawn_vmamba_state(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights in which every parameter matters."""
    stream = np.random.RandomState(0)
    return {name: _drawn(name, shapes[name], stream) for name in sorted(shapes)}


def _drawn(name: str, shape: torch.Size, stream: np.random.RandomState) -> Tensor:
    values = _uniform(tuple(shape), stream)
    if name.endswith("A_logs"):
        return values * 1.5 + 0.5  # A from -7.4 to -0.37
    if name.endswith("Ds"):
        return values / 2 + 1
    if name.endswith("dt_projs_bias"):
        return values * 3 - 2  # steps from 0.0067 to 1.3
    if name.endswith("bias"):
        return values / 2
    if len(shape) == 1:
        return values / 2 + 1  # norms
    fan_in = shape[-1] if len(shape) == 3 else math.prod(shape[1:])  # of each route
    return values * 1.5 / math.sqrt(fan_in)


def _uniform(shape: tuple[int, ...], stream: np.random.RandomState) -> Tensor:
    whole = stream.randint(-(2**15), 2**15, size=shape, dtype=np.int32)
    return torch.from_numpy(whole).to(torch.float32) / 2**15
