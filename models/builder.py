"""Building models through timm: configurations, and weights that ship in the package."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any, TypeVar

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from torch import nn

__all__ = ["build", "bundled_path", "vision_cfg"]

Model = TypeVar("Model", bound=nn.Module)


def bundled_path(name: str) -> str:
    """The path of a weight file in the package."""
    return str(files("vimlrp.models") / "weights" / name)


def vision_cfg(bundled: str | None = None, **overrides: Any) -> dict[str, Any]:
    """A timm pretrained configuration with the evaluation protocol of Vim and VMamba.

    Args:
        bundled: Name of a weight file in the package.
        **overrides: Other entries.
    """
    return {
        "file": None if bundled is None else bundled_path(bundled),
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **overrides,
    }


def build(
    model_class: type[Model],
    variant: str,
    pretrained: bool,
    fit: Callable[..., dict[str, Any]],
    config: dict[str, Any],
    overrides: dict[str, Any],
) -> Model:
    """Build a registered variant with its weights, if asked for.

    Args:
        model_class: The model.
        variant: Its registered name, without a tag.
        pretrained: Whether to load weights.
        fit: Fits a state_dict to the model.
        config: Arguments of the variant.
        overrides: Arguments of the caller, which win.
    """
    model: Model = build_model_with_cfg(
        model_class, variant, pretrained, pretrained_filter_fn=fit, **{**config, **overrides}
    )
    return model
