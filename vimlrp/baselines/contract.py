"""What a baseline is: one call that gives signed pixel maps, and what that call costs and takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vimlrp.errors import InputError, TargetError, UnsupportedModelError
from vimlrp.inputs import check_tensor

__all__ = ["EXTRA", "Function", "Method", "Models"]

EXTRA = "baselines"
"""The extra of vimlrp that installs what some methods need."""

Function = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, images (B, 3, H, W) and classes (B,) to maps (B, H, W)."""


@dataclass(frozen=True)
class Models:
    """Which models a method can explain.

    Args:
        text: In words, to follow "takes".
        accepts: Whether a model is one of them.
    """

    text: str
    accepts: Callable[[nn.Module], bool]


@dataclass(frozen=True)
class Method:
    """An attribution method with a name.

    Args:
        name: Under which it is found.
        function: Computes the maps; it is given checked arguments.
        source: The paper it comes from.
        models: What it can explain.
        forwards: Forward passes for an image of 224 x 224 pixels.
        backwards: Backward passes for it.
        extra: What `pip install 'vimlrp[...]'` must have installed, or None.

    Example:
        >>> method("occlusion")(model, x, target).shape  # doctest: +SKIP
        torch.Size([8, 224, 224])
    """

    name: str
    function: Function
    source: str
    models: Models
    forwards: int
    backwards: int
    extra: str | None = None

    @property
    def single_pass(self) -> bool:
        """Whether one forward and one backward pass at most are enough."""
        return max(self.forwards, self.backwards) <= 1

    def supports(self, model: nn.Module) -> bool:
        """Whether the method can explain a model."""
        return self.models.accepts(model)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that the method cannot explain.

        Args:
            model: A classifier.

        Raises:
            UnsupportedModelError: If it is none of `models`.
        """
        if not self.supports(model):
            raise UnsupportedModelError(
                f"{self.name} takes {self.models.text}, and was given a {type(model).__name__}"
            )

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Explain one class of every image.

        The model is left as it is: weights, gradients, hooks and training flags.

        Args:
            model: A classifier, which returns logits (B, classes).
            x: Preprocessed images, (B, 3, H, W), on the model's device and of its type.
            target: A class a sample, (B,) int64, on the same device.

        Returns:
            What every pixel says for the class, (B, H, W) float32, in a unit of the method's own.

        Raises:
            InputError: If the images are not what the model takes, or the maps are not finite.
            TargetError: If the target is not one class a sample that the model has.
            UnsupportedModelError: If the method cannot explain the model.
            MissingDependencyError: If it needs a package that is not installed.
        """
        check_tensor(x, model)
        _check_target(target, x)
        self.check(model)
        # Out of the user's inference mode, whose tensors no later gradient could use.
        with torch.inference_mode(False):
            maps = self.function(model, x.detach().clone(), target.detach().clone())
        return _checked(self.name, maps.detach().float(), x)


def _check_target(target: Tensor, x: Tensor) -> None:
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        given = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TargetError(f"the target is {given}; give a class a sample as a (B,) int64 tensor")
    if target.shape != (len(x),):
        raise TargetError(
            f"targets of shape {tuple(target.shape)} were given for {len(x)} images; give one each"
        )
    if target.device != x.device:
        raise TargetError(
            f"the targets are on {target.device}, the images on {x.device}: move one of them"
        )


def _checked(name: str, maps: Tensor, x: Tensor) -> Tensor:
    if not maps.isfinite().all():
        raise InputError(
            f"the maps of {name} hold NaN or infinite values: check the model's weights, and use "
            "bfloat16 or float32 where float16 overflows"
        )
    if maps.shape != (len(x), *x.shape[2:]):
        raise UnsupportedModelError(
            f"{name} gave maps {tuple(maps.shape)} for images {tuple(x.shape)}; they are (B, H, W)"
        )
    return maps
