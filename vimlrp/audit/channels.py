"""Which axis of a layer's activation holds the channels."""

from typing import Any

import timm.layers
from torch import Tensor, nn

from vimlrp import sites
from vimlrp.errors import InputError
from vimlrp.wrapping import wrap

__all__ = ["channel_axis", "positions"]

_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm),
    *(timm.layers.LayerNorm2d, timm.layers.RmsNorm2d, sites.PatchEmbedding),
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, sites.Linear)


def channel_axis(model: nn.Module, layer: str, dims: int) -> int:
    """Where the channels of a layer's output stand.

    A sequence has them last. Of maps the kind of the layer tells, where it has but one (a
    convolution has them first, a linear layer last), and else the model: timm's say by their
    `output_fmt` where they keep channels last.

    Args:
        model: The model, or its wrapped counterpart.
        layer: The name of the layer in it.
        dims: Dimensions of its output.

    Raises:
        InputError: If the model has no such layer.
    """
    model = wrap(model)
    module: Any = _module(model, layer)
    module = getattr(module, "fc2", module)  # the last layer of an MLP
    if dims == 2 or isinstance(module, _CHANNELS_FIRST):
        return 1
    first = dims == 4 and getattr(model, "output_fmt", "NCHW") != "NHWC"
    return 1 if first and not isinstance(module, _CHANNELS_LAST) else dims - 1


def positions(model: nn.Module, layer: str, activation: Tensor) -> Tensor:
    """An activation as a list of positions.

    Args:
        model: As for `channel_axis`, as is `layer`.
        layer: Whose activation it is.
        activation: (B, ...).

    Returns:
        (B, P, C), P positions of C channels; P is 1 where the layer has none.
    """
    moved = activation.movedim(channel_axis(model, layer, activation.dim()), -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])


def _module(model: nn.Module, layer: str) -> nn.Module:
    try:
        return model.get_submodule(layer)
    except AttributeError as error:
        raise InputError(
            f"the model has no layer {layer!r}; give a name of model.named_modules()"
        ) from error
