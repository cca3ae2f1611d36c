"""MambaVision's logits as the official code computes them; README.md beside this file says how.

Weights and images are drawn, as those of VMamba are: the file holds logits alone.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from golden.reference import _uniform
from safetensors import safe_open
from torch import Tensor, nn

import vimlrp  # noqa: F401  (registers the models)

FILE = Path(__file__).parent / "mambavision.safetensors"

CASES: dict[str, dict[str, Any]] = {
    "small": {"model": "test_mambavision", "size": (64, 64), "images": 2},
    "small layer scale": {
        "model": "test_mambavision",
        "options": {"layer_scale": 1e-5},
        "size": (64, 96),
        "images": 1,
    },
    "small even depths": {
        "model": "test_mambavision",
        "options": {"depths": (2, 1, 4, 2), "mlp_ratio": 3.0},
        "size": (96, 32),
        "images": 1,
    },
    "small padded windows": {"model": "test_mambavision", "size": (70, 45), "images": 2},
    "tiny": {"model": "mambavision_tiny_224", "size": (224, 224), "images": 1},
    "tiny padded windows": {"model": "mambavision_tiny_224", "size": (250, 120), "images": 1},
}
"""The registered model, its changed options, and the images of each case."""

SMALL = tuple(name for name, case in CASES.items() if case["model"].startswith("test_"))


@dataclass(frozen=True)
class MambaVisionGolden:
    """A model with drawn weights, its images, and the official logits in float64."""

    model: nn.Module
    input: Tensor
    logits: Tensor


def read_mambavision(name: str) -> MambaVisionGolden:
    """Build the model of a case and draw its weights and images."""
    model = timm.create_model(CASES[name]["model"], **options_of(name)).eval()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict(drawn_mambavision_state(shapes))
    with safe_open(FILE, "pt") as file:
        logits = file.get_tensor(name)
        assert json.loads(file.metadata()[name]) == json.loads(json.dumps(CASES[name]))
    return MambaVisionGolden(model, drawn_mambavision_input(name), logits)


def options_of(name: str) -> dict[str, Any]:
    """Arguments of a case's model beside its name."""
    small = {"num_classes": 10} if name in SMALL else {}
    return {**small, **CASES[name].get("options", {})}


def drawn_mambavision_input(name: str) -> Tensor:
    """The images of a case, (B, 3, H, W), uniform in [-2, 2)."""
    case = CASES[name]
    return _uniform((case["images"], 3, *case["size"]), np.random.RandomState(1)) * 2


def drawn_mambavision_state(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights and statistics in which every tensor matters but the count of batches."""
    stream = np.random.RandomState(0)
    return {name: _drawn(name, shapes[name], stream) for name in sorted(shapes)}


def _drawn(name: str, shape: torch.Size, stream: np.random.RandomState) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    values = _uniform(tuple(shape), stream)
    if name.endswith("A_log"):
        return values * 1.5 + 0.5  # A from -7.4 to -0.37
    if name.endswith("dt_proj.bias"):
        return values * 1.5 - 1  # it counts twice: steps from 0.0067 to 1.3
    if name.endswith("running_var"):
        return values * 0.75 + 1
    if name.endswith(("bias", "running_mean")):
        return values / 2
    if len(shape) == 1:
        return values / 2 + 1  # norms, D and layer scales
    return values * 1.5 / math.sqrt(math.prod(shape[1:]))
