"""What a removed patch is replaced by: named protocols.

Curves of different protocols are not comparable. Tokens can be changed in a Vim alone; pixels in
any model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from vimlrp.errors import InputError
from vimlrp.evaluation.patches import PatchGrid, patch_size_of
from vimlrp.inference import Inference
from vimlrp.inputs import preprocessing_of
from vimlrp.tokens import TokenLayout

__all__ = ["PROTOCOLS", "Canvas", "black_of", "canvas_of", "default_protocols"]


@dataclass(frozen=True, eq=False)
class Canvas:
    """Inputs whose patches can be replaced.

    Args:
        kept: Inputs as they are, (B, ...), images or sequences.
        replaced: What stands in a removed patch's place, broadcastable to `kept`.
        grid: The patches.
        spread: From patches that are gone, (N, M) bool, to places of an input, (N, ...) bool.
        classify: From inputs to logits (N, C).
        rows: Inputs to hold at a time.
    """

    kept: Tensor
    replaced: Tensor
    grid: PatchGrid
    spread: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor]
    rows: int

    def logits(self, gone: Tensor, sample: Tensor) -> Tensor:
        """Classify inputs in which patches are replaced.

        Args:
            gone: Which, (N, M) bool.
            sample: The input of each row, (N,).

        Returns:
            (N, C).
        """
        pieces = zip(gone.split(self.rows), sample.split(self.rows), strict=True)
        return torch.cat([self.classify(self.perturbed(*piece)) for piece in pieces])

    def perturbed(self, gone: Tensor, sample: Tensor) -> Tensor:
        """The inputs themselves, (N, ...); arguments as for `logits`."""
        replaced = self.replaced if len(self.replaced) == 1 else self.replaced[sample]
        return torch.where(self.spread(gone), replaced, self.kept[sample])

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Logits with every patch there and with none, (B, C) each: the same for every method."""
        sample = torch.arange(len(self.kept), device=self.kept.device)
        none = torch.zeros(len(sample), self.grid.count, dtype=torch.bool, device=sample.device)
        return self.logits(none, sample), self.logits(~none, sample)


def zero_token(inference: Inference, x: Tensor, size: int) -> Canvas:
    """A patch's whole token is 0, its position embedding with it; class tokens stay.

    The input embeddings set to zero of AttnLRP (Achtibat et al., ICML 2024), read literally.
    """
    tokens = inference.embed(x)
    return _token_canvas(inference, x, size, tokens, torch.zeros_like(tokens[:1]))


def zero_patch(inference: Inference, x: Tensor, size: int) -> Canvas:
    """A patch's content is 0 and its position embedding stays; class tokens stay.

    The same protocol, where the embedding of a patch is what comes before the position.
    """
    tokens = inference.embed(x)
    model: Any = inference.model
    position: Tensor = model.position(model.layout_of(x))
    return _token_canvas(inference, x, size, tokens, position.detach().to(tokens))


def mean(inference: Inference, x: Tensor, size: int) -> Canvas:
    """A patch has the colour that the model's normalisation takes off, which is 0 afterwards.

    That is the mean colour of ImageNet for models normalised by its mean and deviation, and middle
    grey for those normalised by 0.5. As in the evaluation of ViTs by symmetric relevance gain
    (Bluecher et al., TMLR 2024).
    """
    return _pixel_canvas(inference, x, size, torch.zeros_like(x[:1]))


def black(inference: Inference, x: Tensor, size: int) -> Canvas:
    """A patch is black (Chefer et al., CVPR 2021; Ali et al., 2024)."""
    return _pixel_canvas(inference, x, size, black_of(inference, x))


def blur(inference: Inference, x: Tensor, size: int) -> Canvas:
    """A patch is that of the picture after a Gaussian blur of half a patch's side.

    The canvas of insertion in RISE (Petsiuk et al., BMVC 2018), with a blur that grows with the
    patch; the authors of Mamba attribution propose it too, for Mamba's sensitivity to black.
    """
    sigma = size / 2
    kernel = 2 * min(round(2 * sigma), min(x.shape[-2:]) - 1) + 1
    return _pixel_canvas(inference, x, size, gaussian_blur(x, [kernel, kernel], [sigma, sigma]))


PROTOCOLS: Mapping[str, Callable[[Inference, Tensor, int], Canvas]] = MappingProxyType(
    {
        "zero_token": zero_token,
        "zero_patch": zero_patch,
        "mean": mean,
        "blur": blur,
        "black": black,
    }
)
"""Replacements by name; each takes an `Inference`, images (B, 3, H, W) and a patch's side."""

_OF_TOKENS = ("zero_token", "zero_patch")


def canvas_of(protocol: str, inference: Inference, x: Tensor, size: int | None = None) -> Canvas:
    """Prepare images for a protocol.

    Args:
        protocol: A name of `PROTOCOLS`.
        inference: Of the model.
        x: Preprocessed images, (B, 3, H, W).
        size: Side of a patch; None for the model's own.

    Raises:
        InputError: If there is no such protocol, the model has no tokens to change, or patches do
            not cover the images.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            f"there is no replacement {protocol!r}; the replacements are {', '.join(PROTOCOLS)}"
        )
    if protocol in _OF_TOKENS and not inference.has_tokens:
        others = ", ".join(name for name in PROTOCOLS if name not in _OF_TOKENS)
        raise InputError(
            f"{protocol} changes the tokens of a Vim, and {type(inference.model).__name__} has "
            f"none; replacements for any model: {others}"
        )
    return PROTOCOLS[protocol](inference, x, size or patch_size_of(inference.model))


def default_protocols(inference: Inference) -> tuple[str, str]:
    """Two protocols that suit a model: tokens and colours, or two of pixels."""
    return ("zero_token", "mean") if inference.has_tokens else ("mean", "blur")


def black_of(inference: Inference, x: Tensor) -> Tensor:
    """Black as the model's normalisation has it, (1, 3, 1, 1), in the type of `x`."""
    preprocessing = preprocessing_of(inference.model)
    colour = [-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]
    return torch.tensor(colour).view(1, 3, 1, 1).to(x)


def _pixel_canvas(inference: Inference, x: Tensor, size: int, replaced: Tensor) -> Canvas:
    height, width = x.shape[-2:]
    grid = PatchGrid.of(height, width, size)
    kept, replaced = x.to(inference.dtype), replaced.to(inference.dtype)
    return Canvas(kept, replaced, grid, grid.spread, inference, inference.batch_size)


def _token_canvas(
    inference: Inference, x: Tensor, size: int, tokens: Tensor, replaced: Tensor
) -> Canvas:
    model: Any = inference.model
    embed = model.patch_embed
    if size != embed.patch_size:
        raise InputError(
            f"tokens stand for patches of {embed.patch_size} pixels, and {size} were asked for: "
            "leave the patch size out, or replace pixels"
        )
    layout: TokenLayout = model.layout_of(x)
    grid = PatchGrid(size, embed.stride, layout.grid)

    def spread(gone: Tensor) -> Tensor:
        kept = gone.new_zeros(len(gone), len(layout.special), 1)
        return layout.insert(gone.unsqueeze(-1), kept)  # (N, L, 1)

    return Canvas(tokens, replaced, grid, spread, inference.tokens, inference.batch_size)
