"""Maps that look at no model: what any explanation has to beat."""

import zlib

import torch
from torch import Tensor, nn

__all__ = ["centre_prior", "random_map"]


def random_map(model: nn.Module, x: Tensor, target: Tensor, *, seed: int = 0) -> Tensor:
    """Independent normal noise in every pixel.

    The noise depends on the picture and the seed alone, so that a map does not change with the
    batch that it is drawn in, and pictures do not share theirs.

    Args:
        model: Not looked at.
        x: (B, 3, H, W).
        target: Not looked at.
        seed: Another one gives other maps.

    Returns:
        (B, H, W).
    """
    del model, target
    return torch.stack([_noise(image, seed) for image in x.float().cpu()]).to(x.device)


def _noise(image: Tensor, seed: int) -> Tensor:
    """(3, H, W) to (H, W)."""
    generator = torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes(), seed))
    return torch.randn(image.shape[1:], generator=generator)


def centre_prior(model: nn.Module, x: Tensor, target: Tensor, *, width: float = 0.25) -> Tensor:
    """A Gaussian in the middle of the picture, where photographers put their object.

    The centre baseline of the pointing game of Zhang et al., ECCV 2016,
    https://arxiv.org/abs/1608.00507, section 4.1, drawn out to a map.

    Args:
        model: Not looked at.
        x: (B, 3, H, W).
        target: Not looked at.
        width: Standard deviation over the side.

    Returns:
        (B, H, W), the same for every picture, 1 in the middle.
    """
    del model, target
    rows, columns = (_profile(side, width, x.device) for side in x.shape[2:])
    return torch.outer(rows, columns).repeat(len(x), 1, 1)


def _profile(side: int, width: float, device: torch.device) -> Tensor:
    """A Gaussian over the pixel centres of one side, (side,)."""
    place = (torch.arange(side, device=device) + 0.5) / side - 0.5
    return torch.exp(-0.5 * (place / width) ** 2)
