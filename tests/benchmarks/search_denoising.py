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
    """The mean relevance of each square over pictures of which other squares are hidden.

    Squares are drawn into groups anew for every round of passes; each pass shows some of the groups
    and hides the others. What a square adds to the logit among changing companions is what Shapley
    values average; one explanation of the whole picture sees it among all others alone.

    Args:
        inner: What makes a map.
        rounds: Of passes.
        groups: Into which the squares are drawn, and passes of a round.
        shown: How many of the groups each pass shows.
        side: Of the squares, in pixels.
        blurred: Hide squares by the blurred picture instead of by 0.
    """

    inner: Method
    rounds: int
    groups: int = 2
    shown: int = 1
    side: int = 16
    blurred: bool = False

    def __call__(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """See `vimlrp.evaluation.Method`."""
        generator = torch.Generator().manual_seed(0)
        hidden = _blurred(x, self.side / 2) if self.blurred else torch.zeros_like(x)
        total = torch.zeros_like(x[:, 0])
        for _ in range(self.rounds):
            group = self._drawn(x, generator)
            for first in range(self.groups):
                seen = (group - first) % self.groups < self.shown  # (H, W)
                total += seen * self.inner(model, torch.where(seen, x, hidden), target)
        return total / (self.rounds * self.shown)

    def _drawn(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The group of each pixel's square, (H, W); groups are equally large, up to one."""
        rows, columns = (side // self.side for side in x.shape[-2:])
        order = torch.randperm(rows * columns, generator=generator) % self.groups
        cells = order.view(rows, columns)
        return cells.repeat_interleave(self.side, 0).repeat_interleave(self.side, 1).to(x.device)


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
        inside = _blurred(torch.ones_like(maps), self.sigma)
        return _blurred(maps / inside, self.sigma)[:, 0]


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) under a Gaussian, zeros around."""
    reach, channels = int(3 * sigma), x.shape[1]
    place = torch.arange(-reach, reach + 1).to(x)
    taps = torch.softmax(-place.square() / (2 * sigma**2), dim=0).repeat(channels, 1)
    across = F.conv2d(x, taps[:, None, None], padding=(0, reach), groups=channels)
    return F.conv2d(across, taps[:, None, :, None], padding=(reach, 0), groups=channels)


_DEFAULT = CompositeMethod()

DENOISED: dict[str, Method] = {
    "smooth 8": Spread(_DEFAULT, 8),
    "smooth 16": Spread(_DEFAULT, 16),
    "smooth 32": Spread(_DEFAULT, 32),
    "flip": Mirrored(_DEFAULT),
    "noise 4": Noise(_DEFAULT, 4),
    "path .5 1": OnPath(_DEFAULT, (0.5, 1.0)),
    "masked 2": Masked(_DEFAULT, 1),
    "masked 4": Masked(_DEFAULT, 2),
    "masked 8": Masked(_DEFAULT, 4),
    "masked 32": Masked(_DEFAULT, 16),
    "masked 9, 1 of 3 shown": Masked(_DEFAULT, 3, 3, 1),
    "masked 9, 2 of 3 shown": Masked(_DEFAULT, 3, 3, 2),
    "masked 8, 3 of 4 shown": Masked(_DEFAULT, 2, 4, 3),
    "masked 8, squares of 32": Masked(_DEFAULT, 4, side=32),
    "masked 8, squares of 8": Masked(_DEFAULT, 4, side=8),
    "masked 8, blurred": Masked(_DEFAULT, 4, blurred=True),
    "masked 8, convolutions 0": Masked(CompositeMethod({"convolution": "zero"}), 4),
}
"""Over the default composite, by name."""

OF_VMAMBA: dict[str, Method] = {
    "masked 8, downsampling 0": Masked(CompositeMethod({"layers.*.downsample.1": "zero"}), 4),
}
"""Over composites that only a VMamba has sites for."""
