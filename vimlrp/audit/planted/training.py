"""Small classifiers of the benchmark, trained on the fly."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

import vimlrp.models  # noqa: F401  # its import registers the models with timm
from vimlrp.errors import InputError
from vimlrp.modes import evaluation_mode
from vimlrp.preprocessing import Preprocessing

__all__ = ["ARCHITECTURES", "Architecture", "as_input", "create", "logits", "replayed", "train"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """A small model and how it is trained.

    Args:
        model: Name in timm.
        options: Arguments of the model.
        epochs: Passes over the data.
        rate: Greatest learning rate of AdamW.
        batch: Pictures to a step.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 20
    rate: float = 2e-3
    batch: int = 128


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "vim": Architecture(
            "test_vim",
            {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 6, "d_state": 8},
            epochs=40,
        ),
        "vmamba": Architecture(
            "test_vmamba", {"dim": 32, "depths": (1, 1, 2)}, epochs=40, rate=3e-3
        ),
        "cnn": Architecture("test_resnet", rate=4e-3),
    }
)
"""The models of the benchmark, 0.3 to 0.6 million parameters each."""

_SMOOTHING = 0.1
_DECAY = 0.05
_WARM_UP = 0.1
_SHIFT = 2
_PIECE = 256


def create(name: str, classes: int, side: int, *, seed: int = 0) -> nn.Module:
    """A model of the benchmark with random weights, for pictures of one size.

    Args:
        name: Of `ARCHITECTURES`.
        classes: Their number.
        side: Height and width of the pictures in pixels.
        seed: Of the weights.

    Raises:
        InputError: If there is no such model.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"there is no model {name!r}; give one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    options = dict(architecture.options)
    if "img_size" in options:
        options["img_size"] = side
    # A picture is the model's input as it is: nothing is resized or cropped away.
    overlay = {"input_size": (3, side, side), "crop_pct": 1.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(
            architecture.model, num_classes=classes, pretrained_cfg_overlay=overlay, **options
        )


def as_input(pictures: NDArray[np.uint8], model: nn.Module) -> Tensor:
    """Pictures (N, S, S, 3) as a model's input (N, 3, S, S), on the model's device."""
    how = Preprocessing.of(model)
    parameter = next(model.parameters())
    x = torch.from_numpy(pictures).to(parameter.device).permute(0, 3, 1, 2).float() / 255
    mean, std = (x.new_tensor(values)[:, None, None] for values in (how.mean, how.std))
    return ((x - mean) / std).to(parameter.dtype)


def logits(model: nn.Module, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (N, C) of pictures (N, S, S, 3), by the model as it is, with whatever is attached."""
    pieces = np.array_split(pictures, max(1, math.ceil(len(pictures) / _PIECE)))
    with torch.no_grad(), evaluation_mode(model):
        return np.concatenate([model(as_input(piece, model)).cpu().numpy() for piece in pieces])


def train(
    model: nn.Module,
    pictures: NDArray[np.uint8],
    labels: NDArray[np.int64],
    architecture: Architecture,
    *,
    seed: int = 0,
) -> None:
    """Train a model in place, on its device; it is left in evaluation mode.

    AdamW under a linear warm-up and a cosine, with label smoothing 0.1, in bfloat16 on a GPU.
    Pictures are shifted by up to two pixels and mirrored at random.

    Args:
        model: To train.
        pictures: (N, S, S, 3) uint8.
        labels: (N,).
        architecture: Says how.
        seed: Of the order of the pictures.
    """
    x = as_input(pictures, model)
    y = torch.from_numpy(labels).to(x.device)
    optimiser = torch.optim.AdamW(_groups(model), lr=architecture.rate, fused=x.is_cuda)
    steps = architecture.epochs * max(1, len(x) // architecture.batch)
    model.train()
    forward = replayed(model, x[: architecture.batch]) if x.is_cuda else model
    generator = torch.Generator().manual_seed(seed)
    for step, rows in enumerate(_batches(len(x), architecture, generator)):
        for group in optimiser.param_groups:
            group["lr"] = architecture.rate * _share(step / steps)
        rows = rows.to(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, x.device.type == "cuda"):
            out = forward(_moved(x[rows], generator))
        loss = F.cross_entropy(out.float(), y[rows], label_smoothing=_SMOOTHING)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()


def replayed(model: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The steps of a model as CUDA graphs: launching kernels bounds the training of small models.

    The model itself is left as it was.

    Args:
        model: On a GPU, in training mode.
        like: An input (B, 3, S, S) of the shape of all inputs.

    Returns:
        The model's forward pass, whose backward pass is a graph too; the model where its steps
        cannot be captured, with a warning in the log.
    """
    graphed: Any = torch.cuda.make_graphed_callables
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    forward: Callable[[Tensor], Tensor] = model
    try:
        with torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False):
            graphed(model, (like.clone(),), allow_unused_input=True)
        forward = model.__dict__.pop("forward")
    except (RuntimeError, AssertionError) as error:
        _log.warning("%s is trained without CUDA graphs: %s", type(model).__name__, error)
    # Passes before the capture count towards the running statistics of batch norms.
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return forward


def _batches(
    count: int, architecture: Architecture, generator: torch.Generator
) -> Iterator[Tensor]:
    for _ in range(architecture.epochs):
        order = torch.randperm(count, generator=generator)
        for i in range(max(1, count // architecture.batch)):
            yield order[i * architecture.batch : (i + 1) * architecture.batch]


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch (B, 3, S, S) shifted by up to two pixels, and half of it mirrored."""
    side = x.shape[-1]
    top, left = torch.randint(2 * _SHIFT + 1, (2,), generator=generator).tolist()
    padded = F.pad(x, (_SHIFT,) * 4, mode="reflect")
    x = padded[..., top : top + side, left : left + side]
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)


def _share(progress: float) -> float:
    """Of the greatest learning rate, at a share of the steps."""
    if progress < _WARM_UP:
        return (progress + 0.01) / _WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (free if parameter.ndim < 2 or name in spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": _DECAY}, {"params": free, "weight_decay": 0.0}]
