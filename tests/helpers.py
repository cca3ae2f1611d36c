"""Small models with every branch alive, and the one measure of error that the tests use."""

from contextlib import contextmanager

import torch
from torch import nn

from vimlrp.models import VisionMamba
from vimlrp.rules import Rule
from vimlrp.sites import Linear, PatchEmbedding, Site, TokenSum
from vimlrp.tokens import TokenLayout
from vimlrp.tracing import Trace, tracing

SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 5,
    "embed_dim": 16,
    "depth": 2,
    "d_state": 3,
    "d_conv": 3,
}


@contextmanager
def seeded(seed=0):
    """Draw the same initial weights every time, and leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def small_vim(*, seed=0, biases=True, dtype=torch.float64, **options):
    """A VisionMamba of two narrow blocks whose every weight matters."""
    with seeded(seed):
        model = VisionMamba(**{**SMALL, **options}).to(dtype).eval()
    enliven(model, seed)
    if not biases:
        remove_biases(model)
    return model


def enliven(model, seed=0):
    """Move every parameter well away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            spread = 0.5 if parameter.dim() < 2 or "embed" in name or "token" in name else 0.3
            if "dt_proj.bias" in name or "dt_proj_b.bias" in name or "A_" in name:
                spread = 0.2
            parameter.add_((spread * noise).to(parameter))


def remove_biases(model):
    """Set every bias but that of the step size to zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "dt_proj" not in name:
                parameter.zero_()


def images(count=2, size=32, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def relative_error(ours, expected):
    """The relative L2 error, in float64."""
    ours, expected = (torch.as_tensor(x).detach().double() for x in (ours, expected))
    assert ours.shape == expected.shape
    return float((ours - expected).norm() / expected.norm())


def run_site(site: Site, rule: Rule, *inputs, gradient):
    """Run one site under a rule.

    Returns the output, the gradient of each input for `gradient` at the output, and what was
    absorbed, by kind.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    trace = Trace({site: rule})
    with tracing(trace):
        out = site(*leaves)
    gradients = torch.autograd.grad(out, leaves, gradient, allow_unused=True)
    return out.detach(), gradients, {a.kind: a.share for a in trace.absorptions}


class OnePatch(nn.Module):
    """A linear model: one patch as large as the image, and a classifier on it."""

    def __init__(self, size=6, dim=4, classes=3, dtype=torch.float64):
        super().__init__()
        with seeded():
            self.proj = PatchEmbedding(3, dim, size, size)
            self.head = Linear(dim, classes, kind="head")
        self.token_sum = TokenSum()
        self.layout = TokenLayout((1, 1))
        self.to(dtype)

    def forward(self, x):
        patches = self.proj(x).flatten(2).transpose(1, 2)
        tokens = self.token_sum(
            patches, patches.new_zeros(len(x), 0, patches.shape[2]), None, self.layout
        )
        return self.head(tokens[:, 0])


class Wrapped(nn.Module):
    """A module followed by a function of its output."""

    def __init__(self, inner, after):
        super().__init__()
        self.inner = inner
        self.after = after

    def forward(self, *args):
        return self.after(self.inner(*args))
