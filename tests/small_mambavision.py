"""Narrow MambaVisions in which every part matters."""

import timm
import torch
from helpers import seeded

import vimlrp  # noqa: F401  (registers the models)
from vimlrp.models import MambaVision
from vimlrp.sites import BatchNorm2d

SMALL = {
    "num_classes": 5,
    "dim": 4,
    "in_dim": 6,
    "depths": (1, 1, 3, 2),
    "num_heads": (1, 1, 2, 4),
    "window_size": (2, 2, 4, 2),
    "mlp_ratio": 1.5,
    "d_state": 3,
    "layer_scale": 0.5,
}


def small_mambavision(*, seed=0, biases=True, dtype=torch.float64, **options):
    """Weights that keep the size of what passes them, so that no branch drowns in another."""
    with seeded(seed):
        model = MambaVision(**{**SMALL, **options}).to(dtype).eval()
        balance(model)
    if not biases:
        remove_shifts(model)
    return model


def balance(model):
    """Draw weights by their fan-in, and everything else around its initial value."""
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point():
                continue
            noise = torch.randn_like(value)
            if name.endswith("running_var"):
                value.copy_((0.5 * noise).exp())
            elif value.dim() < 2 or name.endswith("A_log"):
                value.add_(0.3 * noise)
            else:
                value.copy_(1.5 * noise / value[0].numel() ** 0.5)


def remove_shifts(model):
    """Let every layer map 0 to 0: no bias but that of the step, no running mean."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "dt_proj" not in name:
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                module.running_mean.zero_()


def pictures(count=2, height=32, width=32, *, seed=0, dtype=torch.float64):
    """Random images."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def make(seed=0, **changes):
    """The registered test model with balanced weights."""
    torch.manual_seed(seed)
    model = timm.create_model("test_mambavision", **{"num_classes": 10, **changes}).eval()
    balance(model)
    return model


def image(*size, count=2):
    """Random images of 64 x 64 pixels or of the size given, in float32."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *(size or (64, 64)), generator=generator)
