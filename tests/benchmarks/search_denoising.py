"""Maps that are averaged over a few passes or spread over their neighbourhood, for the search."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.evaluation import CompositeMethod, Method


@dataclass(frozen=True)
class Noise:
    """The mean of maps of noisy pictures (SmoothGrad's idea, Smilkov et al. 2017).

    Args:
        inner: What makes a map.
        passes: How many are drawn.
        spread: Standard deviation, in units of the normalised input.
    """

    inner: Method
    passes: int
    spread: float = 0.3

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """See `vimlrp.evaluation.Method`."""
        generator = torch.Generator().manual_seed(0)
        noises = (torch.randn(x.shape, generator=generator).to(x) for _ in range(self.passes))
        maps = [self.inner(model, x + self.spread * noise, target) for noise in noises]
        return torch.stack(maps).mean(0)


@dataclass(frozen=True)
class Mirrored:
    """The mean of the maps of a picture and of its mirror image."""

    inner: Method

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """See `vimlrp.evaluation.Method`."""
        mirrored = self.inner(model, x.flip(-1), target).flip(-1)
        return (self.inner(model, x, target) + mirrored) / 2


@dataclass(frozen=True)
class OnPath:
    """The mean over fainter pictures, each map over its share (integrated gradients' path)."""

    inner: Method
    shares: tuple[float, ...]

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """See `vimlrp.evaluation.Method`."""
        maps = [self.inner(model, share * x, target) / share for share in self.shares]
        return torch.stack(maps).mean(0)


@dataclass(frozen=True)
class Masked:
    """The mean over pictures of which random squares are replaced by 0, of the others' relevance.

    Each square is seen in about half of the passes, among other squares each time: what it adds to
    the logit there is what Shapley values average.

    Args:
        inner: What makes a map.
        passes: How many are drawn; the squares of every second are those that the one before hid.
        side: Of the squares, in pixels.
    """

    inner: Method
    passes: int
    side: int = 16

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """See `vimlrp.evaluation.Method`."""
        generator = torch.Generator().manual_seed(0)
        size = [side // self.side for side in x.shape[-2:]]
        total = torch.zeros_like(x[:, 0])
        for _ in range(self.passes // 2):
            drawn = (torch.rand(size, generator=generator) < 0.5).float()
            for cells in (drawn, 1 - drawn):
                seen = cells.repeat_interleave(self.side, 0).repeat_interleave(self.side, 1).to(x)
                total += seen * self.inner(model, x * seen, target)
        return total / (self.passes // 2)


@dataclass(frozen=True)
class Spread:
    """Each pixel's relevance spread by a Gaussian; what would leave the picture stays in it.

    Args:
        inner: What makes a map.
        sigma: Of the Gaussian, in pixels.
    """

    inner: Method
    sigma: float

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """See `vimlrp.evaluation.Method`."""
        maps = self.inner(model, x, target)[:, None]
        inside = self._blurred(torch.ones_like(maps))
        return self._blurred(maps / inside)[:, 0]

    def _blurred(self, maps: Tensor) -> Tensor:
        reach = int(3 * self.sigma)
        place = torch.arange(-reach, reach + 1).to(maps)
        taps = torch.softmax(-place.square() / (2 * self.sigma**2), dim=0)
        across = F.conv2d(maps, taps.view(1, 1, 1, -1), padding=(0, reach))
        return F.conv2d(across, taps.view(1, 1, -1, 1), padding=(reach, 0))


_DEFAULT = CompositeMethod()

DENOISED: dict[str, Method] = {
    "smooth 8": Spread(_DEFAULT, 8),
    "smooth 16": Spread(_DEFAULT, 16),
    "smooth 32": Spread(_DEFAULT, 32),
    "flip": Mirrored(_DEFAULT),
    "noise 4": Noise(_DEFAULT, 4),
    "path .5 1": OnPath(_DEFAULT, (0.5, 1.0)),
    "masked 4": Masked(_DEFAULT, 4),
    "masked 32": Masked(_DEFAULT, 32),
}
"""Over the default composite, by name."""
