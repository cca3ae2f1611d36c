"""vimlrp in the forms that Captum and Quantus expect; neither has to be installed."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.composites import Composite
from vimlrp.engine import Request, Result, propagate
from vimlrp.errors import InputError
from vimlrp.explainer import CompositeLike, Explainer
from vimlrp.inputs import batches, device_and_dtype
from vimlrp.targets import Target
from vimlrp.wrapping import wrap

__all__ = ["MambaLRP", "quantus_explain"]


P = ParamSpec("P")
R = TypeVar("R")


def _decorated(function: Callable[P, R]) -> Callable[P, R]:
    """A function under a decorator: Captum's NoiseTunnel looks below that of its own methods."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return call


class MambaLRP:
    """An attribution method with the interface of `captum.attr.LRP`.

    Args:
        model: As for `vimlrp.Explainer`.
        composite: The rules, as there.
        batch_size: Samples to run at a time; None for all.

    Example:
        >>> attributions = MambaLRP(model).attribute(x, target=3)  # doctest: +SKIP
    """

    multiplies_by_inputs = True
    """Captum's flag: attributions are shares of the output and not slopes."""

    def __init__(
        self,
        model: nn.Module,
        composite: CompositeLike = "mambalrp",
        *,
        batch_size: int | None = None,
    ) -> None:
        explainer = Explainer(model, composite, batch_size=batch_size)  # checks what is given
        self.forward_func = model
        self.composite: Composite = explainer.composite
        self.batch_size = batch_size

    @_decorated
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Any = None,
        additional_forward_args: object = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Relevance of every input value.

        Args:
            inputs: Preprocessed images (B, 3, H, W), or a tuple with them alone.
            target: A class for all samples, one a sample, or tuples of one index, as in Captum;
                None explains the predicted class.
            additional_forward_args: None; no model here takes any.
            return_convergence_delta: Return what the pixels did not receive too.

        Returns:
            Attributions in the form of `inputs`, in float32 or float64, and with
            `return_convergence_delta` the delta, (B,), of `compute_convergence_delta`.

        Raises:
            InputError: If the inputs are no images, or there are further arguments.
            TargetError: If a target does not exist.
        """
        x = _only(inputs)
        if additional_forward_args is not None:
            raise InputError("additional_forward_args were given, but the model takes images alone")
        results = list(self._results(x, _captum_target(target, len(x))))
        colours = torch.cat([result.colours for result in results])
        attributions = (colours,) if isinstance(inputs, tuple) else colours
        if not return_convergence_delta:
            return attributions
        value = torch.cat([result.account.target for result in results])
        return attributions, self.compute_convergence_delta(colours, value)

    def has_convergence_delta(self) -> bool:
        """Whether `compute_convergence_delta` exists: True."""
        return True

    def compute_convergence_delta(
        self, attributions: Tensor | tuple[Tensor], output: Tensor
    ) -> Tensor:
        """What the output has more than the attributions' sum, (B,), as in `captum.attr.LRP`.

        It is what class token, position embedding and biases received, which the account of
        `vimlrp.explain` lists, and zero in a model without them.

        Args:
            attributions: Of `attribute`.
            output: The values explained, (B,).
        """
        return output.flatten() - _only(attributions).flatten(1).sum(1)

    def get_name(self) -> str:
        """The method's name."""
        return type(self).__name__

    def _results(self, x: Tensor, target: Target) -> Iterator[Result]:
        model, done = wrap(self.forward_func), 0
        for batch in batches(x, model, self.batch_size):
            stop = done + len(batch.x)
            part = target[done:stop] if isinstance(target, Tensor) else target
            yield propagate(model, batch.x, self.composite, Request(part))
            done = stop


def quantus_explain(
    model: nn.Module,
    inputs: NDArray[Any],
    targets: NDArray[Any] | int,
    *,
    composite: CompositeLike = "mambalrp",
    batch_size: int | None = None,
    keep_channels: bool = False,
    **_: Any,
) -> NDArray[Any]:
    """Explain arrays, as the `explain_func` of a Quantus metric.

    Args:
        model: As for `vimlrp.Explainer`.
        inputs: Preprocessed images, (B, 3, H, W), of any floating-point type.
        targets: A class a sample, (B,), or one for all.
        composite: The rules; like the next two from the metric's `explain_func_kwargs`.
        batch_size: Samples to run at a time; None for all.
        keep_channels: Keep the relevance of each colour instead of summing it.
        **_: What else Quantus passes on, such as the device; the model's own is used.

    Returns:
        Relevance, (B, 1, H, W), or (B, 3, H, W) with `keep_channels`.

    Raises:
        InputError: If the inputs are no images.
        TargetError: If a target does not exist.

    Example:
        >>> metric = quantus.PixelFlipping()  # doctest: +SKIP
        >>> metric(model, x, y, explain_func=quantus_explain)  # doctest: +SKIP
    """
    device, dtype = device_and_dtype(model)
    x = torch.as_tensor(np.ascontiguousarray(inputs)).to(device, dtype)
    target: Any = np.asarray(targets).reshape(-1) if np.ndim(targets) else targets
    method = MambaLRP(model, composite, batch_size=batch_size)
    relevance: Tensor = method.attribute(x, target=None if targets is None else target)
    relevance = relevance if keep_channels else relevance.sum(1, keepdim=True)
    values: NDArray[Any] = relevance.cpu().numpy()
    return values


def _only(inputs: Tensor | tuple[Tensor]) -> Tensor:
    """The one tensor of what Captum takes as inputs."""
    if isinstance(inputs, tuple) and len(inputs) == 1:
        (inputs,) = inputs
    if not isinstance(inputs, Tensor) or inputs.dim() != 4:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(f"{given} is no batch of images: give a tensor (B, 3, H, W)")
    return inputs


def _captum_target(target: Any, count: int) -> Any:
    """A class for every sample as (B,) tensor, or what is the same for all as it is."""
    if isinstance(target, tuple):
        return _index(target)
    if isinstance(target, list):
        target = torch.tensor([_index(entry) for entry in target])
    if isinstance(target, np.ndarray):
        target = torch.as_tensor(target)
    if isinstance(target, Tensor) and target.numel() == 1:
        return int(target)
    if isinstance(target, Tensor) and target.shape != (count,):
        raise InputError(
            f"targets of shape {tuple(target.shape)} were given for {count} images; give one each"
        )
    return target


def _index(entry: Any) -> Any:
    """An index as it is, or that in a tuple."""
    if not isinstance(entry, tuple):
        return entry
    if len(entry) != 1:
        raise InputError(f"the target {entry} has {len(entry)} indices; logits (B, C) have one")
    return entry[0]
