"""Which axis of a layer's activation holds the channels."""

from torch import Tensor, nn

from vimlrp.errors import InputError, UnsupportedModelError

__all__ = ["channel_axis", "positions"]

_CHANNELS_FIRST = (
    nn.Conv2d,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm2d,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)


def channel_axis(model: nn.Module, layer: str, activation: Tensor) -> int:
    """The axis of the channels, in the activation that a layer returns.

    Models disagree: Vim and ViT have (B, L, C), VMamba and Swin (B, H, W, C), most convolutional
    networks (B, C, H, W). A layer that is a convolution, a norm or a projection says so itself;
    elsewhere the axis that differs from two equal ones is the channels', as the maps of square
    pictures are square; and where that does not tell, the widths of the layer's own parameters do.

    Args:
        model: The model, or its wrapped counterpart.
        layer: Name of the layer in it.
        activation: What it returned for some images, two to four axes.

    Returns:
        1, or the last axis as a positive number.

    Raises:
        InputError: If the model has no such layer.
        UnsupportedModelError: If the axis cannot be told.
    """
    last = activation.dim() - 1
    if last in (1, 2):
        return last
    module = _module(model, layer)
    if last == 3 and isinstance(module, _CHANNELS_FIRST):
        return 1
    # timm's LayerNorm2d is a LayerNorm by descent only.
    if last == 3 and isinstance(module, _CHANNELS_LAST) and "2d" not in type(module).__name__:
        return last
    candidates = (_by_square(activation), _by_width(module, activation)) if last == 3 else ()
    for axis in candidates:
        if axis is not None:
            return axis
    raise UnsupportedModelError(
        f"{layer} returns {tuple(activation.shape)}, of which the axis of the channels cannot be "
        "told: choose a layer that returns (B, L, C), or a map of another size than its channels"
    )


def positions(model: nn.Module, layer: str, activation: Tensor) -> Tensor:
    """An activation as a list of positions.

    Args:
        model: As for `channel_axis`, as is `layer`.
        layer: Whose activation it is.
        activation: (B, ...).

    Returns:
        (B, P, C), P positions of C channels; P is 1 where the layer has none.
    """
    moved = activation.movedim(channel_axis(model, layer, activation), -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])


def _module(model: nn.Module, layer: str) -> nn.Module:
    try:
        return model.get_submodule(layer)
    except AttributeError as error:
        raise InputError(
            f"the model has no layer {layer!r}; give a name of model.named_modules()"
        ) from error


def _by_square(activation: Tensor) -> int | None:
    _, first, middle, last = activation.shape
    if middle == last and first != middle:
        return 1
    return 3 if first == middle and last != middle else None


def _by_width(module: nn.Module, activation: Tensor) -> int | None:
    """By the sizes of one-dimensional parameters, which biases and norms have for each channel."""
    widths = {len(p) for p in module.parameters() if p.dim() == 1}
    first, last = (activation.shape[axis] in widths for axis in (1, 3))
    return None if first == last else (1 if first else 3)
