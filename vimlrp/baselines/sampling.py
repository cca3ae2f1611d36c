"""Methods that run a model many times, computed by Captum (https://captum.ai)."""

from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.baselines.chunks import in_chunks
from vimlrp.baselines.contract import EXTRA
from vimlrp.baselines.frozen import TargetLogit, frozen_copy
from vimlrp.errors import InputError
from vimlrp.optional import optional

__all__ = [
    "SAMPLES",
    "STEPS",
    "WINDOWS",
    "integrated_gradients",
    "occlusion",
    "smoothgrad",
    "smoothgrad_x_input",
]

SAMPLES, STEPS, WINDOWS = 32, 32, 14
"""Noisy pictures of SmoothGrad, steps of integrated gradients, windows along a side."""

_BATCH = 32
"""Pictures that the model is given at a time."""


def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    samples: int = SAMPLES,
    noise: float = 0.15,
    seed: int = 0,
) -> Tensor:
    """The mean gradient over noisy copies of the input, summed over colours with its sign.

    Smilkov et al. 2017, https://arxiv.org/abs/1706.03825, section 3.

    Args:
        model: A differentiable classifier.
        x: (B, 3, H, W).
        target: (B,).
        samples: Noisy copies of each image.
        noise: Standard deviation, over the range of the image's values.
        seed: Of the noise, which is the same for every image.

    Returns:
        Logit per unit of the input, (B, H, W).

    Raises:
        InputError: If there is no sample, or the noise is not positive.
    """
    return _smooth_slope(model, x, target, samples, noise, seed).sum(1)


def smoothgrad_x_input(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    samples: int = SAMPLES,
    noise: float = 0.15,
    seed: int = 0,
) -> Tensor:
    """The gradient of `smoothgrad` times the clean input, summed over colours.

    Smilkov et al. 2017, https://arxiv.org/abs/1706.03825, section 3.3.

    Args:
        model: As for `smoothgrad`, as are the arguments that follow.
        x: (B, 3, H, W).
        target: (B,).
        samples: Noisy copies of each image.
        noise: Standard deviation, over the range of the image's values.
        seed: Of the noise.

    Returns:
        (B, H, W).
    """
    return (_smooth_slope(model, x, target, samples, noise, seed) * x).sum(1)


def _smooth_slope(
    model: nn.Module, x: Tensor, target: Tensor, samples: int, noise: float, seed: int
) -> Tensor:
    if samples < 1 or not noise > 0:
        raise InputError(f"{samples} samples of noise {noise}: give 1 or more, and noise above 0")
    captum = optional("captum.attr", "captum", EXTRA)
    tunnel = captum.NoiseTunnel(captum.Saliency(TargetLogit(frozen_copy(model))))

    def slope(image: Tensor, label: Tensor) -> Tensor:
        spread = noise * float(image.max() - image.min())
        return tunnel.attribute(
            image,
            nt_samples=samples,
            nt_samples_batch_size=min(samples, _BATCH),
            stdevs=spread or noise,  # an image of one colour has no range
            abs=False,
            additional_forward_args=(label,),
        )

    # One by one, from the same random numbers: a map does not change with its batch.
    slopes = []
    for image, label in zip(x.split(1), target.split(1), strict=True):
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            _seed(x.device, seed)
            slopes.append(slope(image, label))
    return torch.cat(slopes)


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generator of one device; torch.manual_seed would seed those of all others too."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def integrated_gradients(
    model: nn.Module, x: Tensor, target: Tensor, *, steps: int = STEPS
) -> Tensor:
    """The gradient along the straight path from zero, times the input, summed over colours.

    Sundararajan, Taly and Yan, ICML 2017, https://arxiv.org/abs/1703.01365, equation 1, by
    Gauss-Legendre quadrature. Zero of a preprocessed input is the colour that its normalisation
    takes off: ImageNet's mean colour, or middle grey for models normalised by 0.5.

    Args:
        model: A differentiable classifier.
        x: (B, 3, H, W).
        target: (B,).
        steps: Points along the path.

    Returns:
        Shares of the difference between the logits at the image and at zero, (B, H, W).

    Raises:
        InputError: If there is no step.
    """
    if steps < 1:
        raise InputError(f"{steps} steps were asked for; give 1 or more")
    captum = optional("captum.attr", "captum", EXTRA)
    method = captum.IntegratedGradients(TargetLogit(frozen_copy(model)))

    def maps(_: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        attribution: Tensor = method.attribute(
            images,
            n_steps=steps,
            internal_batch_size=_BATCH,
            additional_forward_args=(classes,),
        )
        return attribution.sum(1)

    return in_chunks(maps, model, x, target, _BATCH)


def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
) -> Tensor:
    """What the logit loses when a window of the picture is set to zero.

    Zero is the colour that the normalisation takes off, as for `integrated_gradients`.

    Zeiler and Fergus, ECCV 2014, https://arxiv.org/abs/1311.2901, section 4.2.

    Args:
        model: A classifier; no gradient is needed.
        x: (B, 3, H, W).
        target: (B,).
        window: Height and width in pixels; None for a fourteenth of the sides, which at 224 is a
            patch of Vim.
        stride: Distance between windows down and across; None for the window's size.

    Returns:
        The loss of the logit, averaged over the windows that hold a pixel, (B, H, W).

    Raises:
        InputError: If the windows are not within the picture or leave gaps.
    """
    sides = (x.shape[2], x.shape[3])
    window = window or (ceil(sides[0] / WINDOWS), ceil(sides[1] / WINDOWS))
    stride = stride or window
    _check_windows(window, stride, sides)
    captum = optional("captum.attr", "captum", EXTRA)
    method = captum.Occlusion(TargetLogit(frozen_copy(model)))
    return in_chunks(partial(_occlude, method, window, stride), model, x, target, _BATCH)


def _occlude(
    method: Any,
    window: tuple[int, int],
    stride: tuple[int, int],
    _: nn.Module,
    x: Tensor,
    target: Tensor,
) -> Tensor:
    attribution: Tensor = method.attribute(
        x,
        sliding_window_shapes=(x.shape[1], *window),
        strides=(x.shape[1], *stride),
        perturbations_per_eval=max(1, _BATCH // len(x)),
        additional_forward_args=(target,),
    )
    return attribution[:, 0]  # all colours go at once, and have the same value


def _check_windows(
    window: tuple[int, int], stride: tuple[int, int], sides: tuple[int, int]
) -> None:
    fits = all(1 <= w <= side for w, side in zip(window, sides, strict=True))
    if not fits or not all(1 <= s <= w for s, w in zip(stride, window, strict=True)):
        raise InputError(
            f"windows of {window} pixels at distances of {stride} were asked for: give windows "
            f"between 1 and the sides, {sides}, and distances between 1 and the window's"
        )
