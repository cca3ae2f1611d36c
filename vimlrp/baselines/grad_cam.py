"""Grad-CAM, computed by the grad-cam package."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.baselines.chunks import in_chunks
from vimlrp.baselines.contract import EXTRA, Models
from vimlrp.baselines.frozen import TargetLogit, frozen_copy
from vimlrp.errors import UnsupportedModelError
from vimlrp.models import VisionMamba
from vimlrp.optional import optional
from vimlrp.wrapping.official import rebuild

__all__ = ["MAPPED", "grad_cam"]

_BATCH = 32


@dataclass(frozen=True)
class _Place:
    """Where Grad-CAM looks: a module's name, and its output's way into (B, C, h, w)."""

    layer: str
    arrange: Callable[[nn.Module, Tensor, Tensor], Tensor]


def _tokens(model: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """The patches of a sequence (B, L, D)."""
    vim: Any = model
    layout = vim.layout_of(x)
    return layout.patches_of(out).transpose(1, 2).unflatten(2, layout.grid)


def _map(model: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """A map with its channels, whose number timm knows, first or last."""
    del x
    stages: Any = model.feature_info
    channels = stages[-1]["num_chs"]
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if not isinstance(out, Tensor) or out.dim() != 4 or channels not in (out.shape[1], shape[3]):
        raise UnsupportedModelError(
            f"the last stage of the {type(model).__name__} gives {shape}, and Grad-CAM needs a map "
            f"of {channels} channels, first or last"
        )
    return out if out.shape[1] == channels else out.permute(0, 3, 1, 2)


def _place(model: nn.Module) -> _Place | None:
    """The last layer that still has a map and a gradient everywhere on it, if there is one."""
    if isinstance(model, VisionMamba):
        # Behind the last block only the class token has a gradient, so it is read before.
        return _Place(f"layers.{len(model.layers) - 1}.norm", _tokens)
    stages: Any = getattr(model, "feature_info", None) or []
    if len({stage.get("reduction") for stage in stages if isinstance(stage, dict)}) < 2:
        return None  # tokens of one resolution, of which nobody says how they lie
    name = str(stages[-1].get("module"))
    return _Place(name, _map) if name in dict(model.named_modules()) else None


def _own(model: nn.Module) -> nn.Module:
    """The counterpart of an official model, any other as it is."""
    return rebuild(model) or model


def _is_mapped(model: nn.Module) -> bool:
    try:
        return _place(_own(model)) is not None
    except UnsupportedModelError:
        return False


MAPPED = Models("a Vim, or a model with stages such as VMamba and timm's convolutional", _is_mapped)


def grad_cam(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The last map's channels, weighted with their mean gradient, their positive part.

    Selvaraju et al., ICCV 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2. The map is
    that of the last stage, which timm's `feature_info` names. In a Vim it is the patches as they
    enter the last mixer, since behind that only the class token is read.

    Args:
        model: A Vim, or a model whose `feature_info` lists stages that give maps.
        x: (B, 3, H, W).
        target: (B,).

    Returns:
        From 0 to 1 in every map, (B, H, W).

    Raises:
        UnsupportedModelError: If the last stage gives no map.
    """
    return in_chunks(_cams, _own(model), x, target, _BATCH)


def _cams(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    place = _place(model)
    if place is None:
        raise UnsupportedModelError(f"a {type(model).__name__} has no map for Grad-CAM")
    package = optional("pytorch_grad_cam", "grad-cam", EXTRA)
    # The package clears the model's gradients, writes new ones and hooks the layer: of the copy.
    copy = frozen_copy(model)
    cam = package.GradCAM(
        _Targeted(copy, target),
        [copy.get_submodule(place.layer)],
        lambda out: place.arrange(model, x, out).float(),
    )
    try:
        with torch.enable_grad():
            # One value a sample, to be explained as it is.
            maps = cam(x.detach().requires_grad_(), [_itself] * len(x))
    finally:
        cam.activations_and_grads.release()
    return torch.from_numpy(maps).to(x.device)


def _itself(value: Tensor) -> Tensor:
    return value


class _Targeted(TargetLogit):
    """The logits of fixed classes, of a model that is called with images alone.

    Args:
        model: Returns logits (B, classes).
        target: (B,).
    """

    def __init__(self, model: nn.Module, target: Tensor) -> None:
        super().__init__(model)
        self.target = target

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) to (B,)."""
        return super().forward(x, self.target if target is None else target)
