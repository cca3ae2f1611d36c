"""Composites that a search tries: changes over `mambalrp`, by a name that says them."""

from collections.abc import Mapping

Changes = Mapping[str, str]

_SUM = "gamma_sum"

_SHARED: dict[str, Changes] = {
    "sum 0.1": {"residual": f"{_SUM}(0.1)"},
    "sum 0.5": {"residual": f"{_SUM}(0.5)"},
    "sum 1": {"residual": f"{_SUM}(1)"},
    "sum 10": {"residual": f"{_SUM}(10)"},
    "projections 0.05": {"projection": "gamma(0.05)"},
    "projections 0.25": {"projection": "gamma(0.25)"},
    "projections 1": {"projection": "gamma(1)"},
    "convolutions 0": {"convolution": "zero"},
    "convolutions 0.1": {"convolution": "gamma(0.1)"},
    "convolutions 1": {"convolution": "gamma(1)"},
    "convolutions 10": {"convolution": "gamma(10)"},
    "sum 1, projections 0.05": {"residual": f"{_SUM}(1)", "projection": "gamma(0.05)"},
    "sum 1, projections 0.25": {"residual": f"{_SUM}(1)", "projection": "gamma(0.25)"},
    "sum 1, convolutions 1": {"residual": f"{_SUM}(1)", "convolution": "gamma(1)"},
    "scan .5:.25:.25": {"scan": "share_factors(0.5, 0.25, 0.25)"},
    "scan .8:.1:.1": {"scan": "share_factors(0.8, 0.1, 0.1)"},
    "head 0.25": {"head": "gamma(0.25)"},
    "patches 100": {"patch_embedding": "gamma(100)"},
    "patches flat": {"patch_embedding": "flat"},
}

_VIM: dict[str, Changes] = {
    "gate 1:0": {"gate": "share(1, 0)"},
    "gate 0:1": {"gate": "share(0, 1)"},
    "gate .75:.25": {"gate": "share(0.75, 0.25)"},
    "gate .65:.35": {"gate": "share(0.65, 0.35)"},
    "gate .75:.25, convolutions 0.1": {"gate": "share(0.75, 0.25)", "convolution": "gamma(0.1)"},
    "sum 1, gate 1:0": {"residual": f"{_SUM}(1)", "gate": "share(1, 0)"},
    "sum 1, gate .75:.25": {"residual": f"{_SUM}(1)", "gate": "share(0.75, 0.25)"},
    "stream 1": {"residual": f"{_SUM}(1)", "token_sum": "gradient"},
    "token sum 1": {"token_sum": f"{_SUM}(1)"},
    "early sums 1": {f"layers.{i}.residual": f"{_SUM}(1)" for i in range(6)},
    "late sums 1": {f"layers.{i}.residual": f"{_SUM}(1)" for i in range(6, 12)},
    "in_proj 0.25": {"layers.*.mixer.in_proj": "gamma(0.25)"},
    "out_proj 0.25": {"layers.*.mixer.out_proj": "gamma(0.25)"},
    "early projections 0.25": {f"layers.{i}.mixer.*_proj": "gamma(0.25)" for i in range(6)},
    "late projections 0.25": {f"layers.{i}.mixer.*_proj": "gamma(0.25)" for i in range(6, 12)},
}

_VMAMBA: dict[str, Changes] = {
    "stem 1": {"patch_embed.0": "gamma(1)", "patch_embed.5": "gamma(1)"},
    "stem 0": {"patch_embed.0": "zero", "patch_embed.5": "zero"},
    "MLPs 0.25": {"layers.*.mlp.fc*": "gamma(0.25)"},
    "in and out 0.25": {"layers.*.op.*_proj": "gamma(0.25)"},
    "downsampling 1": {"layers.*.downsample.1": "gamma(1)"},
    "downsampling 0": {"layers.*.downsample.1": "zero"},
    "early sums 1": {f"layers.{i}.*.residual*": f"{_SUM}(1)" for i in (0, 1)},
    "late sums 1": {f"layers.{i}.*.residual*": f"{_SUM}(1)" for i in (2, 3)},
    "downsampling 0, depthwise 0.1": {
        "layers.*.downsample.1": "zero",
        "layers.*.op.conv2d": "gamma(0.1)",
    },
    "downsampling 0, stem 1": {
        "layers.*.downsample.1": "zero",
        "patch_embed.0": "gamma(1)",
        "patch_embed.5": "gamma(1)",
    },
    "depthwise 0": {"layers.*.op.conv2d": "zero"},
    "depthwise 0.1, others 0": {"convolution": "zero", "layers.*.op.conv2d": "gamma(0.1)"},
}

CANDIDATES: Mapping[str, Mapping[str, Changes]] = {
    "vim": {**_SHARED, **_VIM},
    "vmamba": {**_SHARED, **_VMAMBA},
}
"""By family of models."""
