"""The shares of generalised LRP-gamma at the outputs of a layer, as one pass over memory.

MambaLRP, appendix C.2; `vimlrp.rules.Gamma` has the words.
"""

import torch
from torch import Tensor

from vimlrp.kernels import fused_maps_native
from vimlrp.kernels.backends import choose

__all__ = ["gamma_shares", "reference"]


@torch.no_grad()
def gamma_shares(z: Tensor, magnitude: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """What a gradient at z becomes at z and at the sum of magnitudes, by factors.

    With half = gamma / 2 these are (1 + half) q and half sign(z) q, where
    q = |z| / (|z| + half (|z| + magnitude)); 1 and 0 where z is 0.

    Args:
        z: Outputs of any shape.
        magnitude: The sum of the magnitudes of all contributions to each.
        gamma: How much more the contributions of the winning sign count.

    Returns:
        Both factors, in the shape of z.
    """
    alike = z.is_contiguous() and magnitude.is_contiguous() and z.dtype == magnitude.dtype
    if alike and choose("auto", z.device, z.dtype) == "native" and z.dtype == torch.float32:
        return fused_maps_native.gamma_shares(z, magnitude, gamma)
    return reference(z, magnitude, gamma)


def reference(z: Tensor, magnitude: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`gamma_shares` in plain PyTorch: any device, any floating dtype."""
    half, none, sign = 0.5 * gamma, z == 0, z.sign()
    # In place, since fresh memory is what costs time.
    carrier = (sign * magnitude).mul_(half).add_(z, alpha=1 + half)
    ratio = torch.div(z, carrier, out=carrier).masked_fill_(none, 0.0)
    at_magnitude = sign.mul_(ratio).mul_(half)
    return ratio.mul_(1 + half).masked_fill_(none, 1.0), at_magnitude
