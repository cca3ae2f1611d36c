"""Numbers computed by the official code; README.md beside this file says how."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from vimlrp.models.vim import VisionMamba

FOLDER = Path(__file__).parent
SMALL = ("middle", "stride", "head", "double", "none", "undivided")
"""Files that carry their weights and input."""
FULL = ("tiny", "tiny_stride8")
"""Published sizes, whose weights and input are drawn by `drawn_state` and `drawn_input`."""


@dataclass(frozen=True)
class Golden:
    """One file: a model of ours with the weights given, its input and what must come out."""

    model: VisionMamba
    input: Tensor
    targets: Tensor
    logits: Tensor
    tokens: dict[str, Tensor]

    def to(self, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
        """Model and input in the given type."""
        return self.model.to(dtype), self.input.to(dtype)


def read(name: str) -> Golden:
    """Build the model of a golden file and load its weights strictly."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        model = VisionMamba(**json.loads(file.metadata()["config"])).eval()
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}
    state = state or drawn_state({key: value.shape for key, value in model.state_dict().items()})
    model.load_state_dict(state)
    return Golden(
        model,
        tensors.get("input", drawn_input(model.img_size)),
        tensors["targets"],
        tensors["logits"],
        {key[7:]: value for key, value in tensors.items() if key.startswith("tokens.")},
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep to one thread: beside another busy process OpenMP's waiting threads cost a minute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative L2 error over the samples, in float64."""
    ours, theirs = ours.double().flatten(1), theirs.double().flatten(1)
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


def drawn_state(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights in which every parameter matters, the same bits on every machine.

    They are whole numbers from numpy's frozen MT19937 stream, scaled by powers of two or by a
    float32 constant: no library function is involved whose last bit may differ.
    """
    stream = np.random.RandomState(0)
    return {name: _drawn(name, shapes[name], stream) for name in sorted(shapes)}


def drawn_input(size: tuple[int, int]) -> Tensor:
    """One image, (1, 3, H, W), uniform in [-2, 2)."""
    return _uniform((1, 3, *size), np.random.RandomState(1)) * 2


def _drawn(name: str, shape: torch.Size, stream: np.random.RandomState) -> Tensor:
    values = _uniform(tuple(shape), stream)
    if name.endswith(("A_log", "A_b_log")):
        return values * 2 + 1  # A from -20 to -0.37
    if name.endswith((".D", ".D_b", "norm.weight", "norm_f.weight")):
        return values / 2 + 1
    if "dt_proj" in name and name.endswith("bias"):
        return values * 3 - 2  # steps from 0.0067 to 1.3
    if name.endswith((".bias", "pos_embed", "cls_token")):
        return values / 2
    if "conv1d" in name:
        return values
    spread = 1 / 2 if "out_proj" in name else 1.5  # larger ones make float32 chaotic
    return values * spread / math.sqrt(math.prod(shape[1:]))


def _uniform(shape: tuple[int, ...], stream: np.random.RandomState) -> Tensor:
    whole = stream.randint(-(2**15), 2**15, size=shape, dtype=np.int32)
    return torch.from_numpy(whole).to(torch.float32) / 2**15
