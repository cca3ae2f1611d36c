"""The layer that an audit records, and its channels without their positions."""

import re
from typing import Any, Literal

from torch import Tensor, nn

from vimlrp.audit.channels import channel_axis
from vimlrp.errors import InputError
from vimlrp.wrapping import wrap

__all__ = ["default_layer", "pool"]

# How the models that vimlrp explains call their blocks; the first form that a model has counts.
_BLOCKS = (
    r"(layers|levels|stages)\.\d+\.blocks\.\d+",  # VMamba, MambaVision, Swin, ConvNeXt, MambaOut
    r"layer\d+\.\d+",  # ResNet
    r"s\d+\.b\d+",  # RegNet
    r"(blocks|stages)\.\d+\.\d+",  # EfficientNet, MobileNet
    r"(layers|blocks)\.\d+",  # Vim, ViT, MLP-Mixer
)
# Its blocks return maps and states, which have no sum.
_EFFICIENT_VIM_BLOCKS = r"stages\.\d+\.blocks\.\d+\.ffn"
_DEPTH = 0.75


def default_layer(model: nn.Module) -> str:
    """The block at three quarters of a model's depth, where its channels stand for parts of things.

    Later blocks know the class and little of where and what; earlier ones know edges.

    Args:
        model: A classifier that vimlrp explains.

    Returns:
        The name of the layer, as `record` and `start` of `vimlrp.Explainer` take it.

    Raises:
        InputError: If the model calls its blocks in no way that is known here.

    Example:
        >>> default_layer(timm.create_model("vim_tiny_patch16_224"))  # doctest: +SKIP
        'layers.17'
    """
    model = wrap(model)
    names = _blocks(model) or _stages(model)
    if not names:
        raise InputError(
            f"the blocks of a {type(model).__name__} are not known by name: say which layer to "
            "record, by its name in model.named_modules()"
        )
    return names[max(1, round(_DEPTH * len(names))) - 1]


def pool(
    values: Tensor,
    model: nn.Module,
    *,
    layer: str | None = None,
    how: Literal["max", "sum"] = "max",
) -> Tensor:
    """One number a channel: the greatest of its activations, or the sum of its relevance.

    Class tokens are positions too.

    Args:
        values: Activation or relevance of a layer, (B, L, C), (B, H, W, C), (B, C, H, W), or
            (B, C), which is returned as it is.
        model: Whose layer it is.
        layer: Its name; the default layer if None.
        how: "max" for activations, "sum" for relevance.

    Returns:
        (B, C).
    """
    axis = channel_axis(model, layer or default_layer(model), values.dim())
    rows = values.movedim(axis, 1).flatten(2) if values.dim() > 2 else values[:, :, None]
    return rows.amax(2) if how == "max" else rows.sum(2)


def _blocks(model: nn.Module) -> list[str]:
    efficient_vim = type(model).__name__.removeprefix("Sited").startswith("EfficientViM")
    forms = (_EFFICIENT_VIM_BLOCKS,) if efficient_vim else _BLOCKS
    names = [name for name, _ in model.named_modules()]
    found = ([name for name in names if re.fullmatch(form, name)] for form in forms)
    return next(filter(None, found), [])


def _stages(model: nn.Module) -> list[str]:
    """The ends of timm's stages, for models without blocks that carry the whole of their depth."""
    names = dict(model.named_modules())
    features: Any = getattr(model, "feature_info", None) or []
    modules = [str(info.get("module")) for info in features if isinstance(info, dict)]
    return [module for module in modules if module in names]
