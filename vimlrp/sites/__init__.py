"""The places in a forward pass where relevance needs a rule, each a small module.

A model built from sites shows in its structure where rules act. In a plain forward pass a site is
an ordinary layer; while a `vimlrp.tracing.Trace` is active it runs under the rule that the
composite gives it.
"""

from vimlrp.sites.affine import (
    AffineSite,
    CausalConv1d,
    CentredConv1d,
    Conv2d,
    Linear,
    PatchEmbedding,
)
from vimlrp.sites.attention import Attention, Excitation
from vimlrp.sites.base import SITE_KINDS, Site
from vimlrp.sites.batchnorm import BatchNorm2d
from vimlrp.sites.elementwise import Activation, Gate, Residual
from vimlrp.sites.norms import LayerNorm, Norm, RMSNorm
from vimlrp.sites.scan import Scan, Step
from vimlrp.sites.tokens import TokenSum

__all__ = [
    "SITE_KINDS",
    "Activation",
    "AffineSite",
    "Attention",
    "BatchNorm2d",
    "CausalConv1d",
    "CentredConv1d",
    "Conv2d",
    "Excitation",
    "Gate",
    "LayerNorm",
    "Linear",
    "Norm",
    "PatchEmbedding",
    "RMSNorm",
    "Residual",
    "Scan",
    "Site",
    "Step",
    "TokenSum",
]
