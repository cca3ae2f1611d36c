"""Composites that a search tries: changes over `mambalrp`, by a name that says them."""

from collections.abc import Mapping

Changes = Mapping[str, str]

_SHARED: dict[str, Changes] = {
    "sum 0.1": {"residual": "gamma_sum(0.1)"},
    "sum 0.5": {"residual": "gamma_sum(0.5)"},
    "sum 1": {"residual": "gamma_sum(1)"},
    "sum 10": {"residual": "gamma_sum(10)"},
    "projections 0.25": {"projection": "gamma(0.25)"},
    "convolutions 0": {"convolution": "zero"},
    "scan .5:.25:.25": {"scan": "share_factors(0.5, 0.25, 0.25)"},
}

_VIM: dict[str, Changes] = {
    "projections 0.05": {"projection": "gamma(0.05)"},
    "projections 1": {"projection": "gamma(1)"},
    "gate 1:0": {"gate": "share(1, 0)"},
    "gate .75:.25": {"gate": "share(0.75, 0.25)"},
    "gate .65:.35": {"gate": "share(0.65, 0.35)"},
    "gate 0:1": {"gate": "share(0, 1)"},
    "scan .8:.1:.1": {"scan": "share_factors(0.8, 0.1, 0.1)"},
    "token sum 1": {"token_sum": "gamma_sum(1)"},
    "head 0.25": {"head": "gamma(0.25)"},
}

_DOWNSAMPLING = "layers.*.downsample.1"
_DEPTHWISE = "layers.*.op.conv2d"
_STEM = ("patch_embed.0", "patch_embed.5")

_VMAMBA: dict[str, Changes] = {
    "convolutions 0.1": {"convolution": "gamma(0.1)"},
    "convolutions 1": {"convolution": "gamma(1)"},
    "stem 0": dict.fromkeys(_STEM, "zero"),
    "stem 1": dict.fromkeys(_STEM, "gamma(1)"),
    "depthwise 0": {_DEPTHWISE: "zero"},
    "depthwise 0.1, others 0": {"convolution": "zero", _DEPTHWISE: "gamma(0.1)"},
    "downsampling 0": {_DOWNSAMPLING: "zero"},
    "downsampling 0, stem 1": {_DOWNSAMPLING: "zero", **dict.fromkeys(_STEM, "gamma(1)")},
    "downsampling 0, depthwise 0.1": {_DOWNSAMPLING: "zero", _DEPTHWISE: "gamma(0.1)"},
}

CANDIDATES: Mapping[str, Mapping[str, Changes]] = {
    "vim": {**_SHARED, **_VIM},
    "vmamba": {**_SHARED, **_VMAMBA},
}
"""By family of models."""
