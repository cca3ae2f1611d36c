"""Composites that a search tries: changes over `mambalrp`, by a name that says them."""

import re
from collections.abc import Mapping, Sequence

from search_rules import RouteShares
from torch import nn

from vimlrp.rules import Rule

Changes = Mapping[str, Rule | str]

_SHARED: dict[str, Changes] = {
    "sum 0.1": {"residual": "gamma_sum(0.1)"},
    "sum 0.5": {"residual": "gamma_sum(0.5)"},
    "sum 1": {"residual": "gamma_sum(1)"},
    "sum 10": {"residual": "gamma_sum(10)"},
    "projections 0.25": {"projection": "gamma(0.25)"},
    "convolutions 0": {"convolution": "zero"},
    "scan .5:.25:.25": {"scan": "share_factors(0.5, 0.25, 0.25)"},
    "embedding 0": {"patch_embedding": "zero"},
    "embedding 1": {"patch_embedding": "gamma(1)"},
    "embedding flat": {"patch_embedding": "flat"},
    "embedding box": {"patch_embedding": "box"},
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
    "projections in 0.05": {"layers.*.mixer.in_proj": "gamma(0.05)"},
    "projections out 0.05": {"layers.*.mixer.out_proj": "gamma(0.05)"},
    "routes 0.25": {"scan": RouteShares((0.25, 0.25))},
    "routes 1": {"scan": RouteShares((1.0, 1.0))},
    "routes 1, forward": {"scan": RouteShares((1.0, 0.0))},
    "routes 1, backward": {"scan": RouteShares((0.0, 1.0))},
    "gate .75:.25, last half, convolutions 0": {
        "convolution": "zero",
        **{f"layers.{n}.mixer.gate": "share(0.75, 0.25)" for n in range(6, 12)},
    },
}

_DOWNSAMPLING = "layers.*.downsample.1"
_DEPTHWISE = "layers.*.op.conv2d"
_STEM = ("patch_embed.0", "patch_embed.5")
_MLP = "layers.*.mlp.fc*"

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
    "MLP 0.05": {_MLP: "gamma(0.05)"},
    "MLP 0.25": {_MLP: "gamma(0.25)"},
    "projections but MLP 0.25": {"layers.*.op.*_proj": "gamma(0.25)"},
    "routes 0.25": {"scan": RouteShares((0.25,) * 4)},
    "routes 1": {"scan": RouteShares((1.0,) * 4)},
    "routes 1, along rows": {"scan": RouteShares((1.0, 0.0, 1.0, 0.0))},
    "routes 1, along columns": {"scan": RouteShares((0.0, 1.0, 0.0, 1.0))},
    "routes 1, forward": {"scan": RouteShares((1.0, 1.0, 0.0, 0.0))},
    "routes 1, backward": {"scan": RouteShares((0.0, 0.0, 1.0, 1.0))},
    "downsampling 0, MLP 0.25 in the first third": {
        _DOWNSAMPLING: "zero",
        "layers.0.blocks.*.mlp.fc*": "gamma(0.25)",
    },
}

_PARTS = {
    "first third": (0, 1 / 3),
    "last third": (2 / 3, 1),
    "first half": (0, 0.5),
    "last half": (0.5, 1),
}

_SITES: dict[str, dict[str, str]] = {
    "vim": {
        "projections": "mixer.*_proj",
        "convolutions": "mixer.conv1d*",
        "gate": "mixer.gate",
        "sum": "residual",
        "scan": "mixer.scan",
        "activation": "mixer.*act",
    },
    "vmamba": {
        "projections": "op.*_proj",
        "MLP": "mlp.fc*",
        "convolutions": "op.conv2d",
        "sum": "residual*",
        "scan": "op.scan",
        "activation": "op.act",
    },
}
"""Sites inside a block, by family of models."""

_SCHEDULED = {
    "projections": {"0.05": "gamma(0.05)", "0.25": "gamma(0.25)"},
    "MLP": {"0.05": "gamma(0.05)", "0.25": "gamma(0.25)"},
    "convolutions": {"0": "zero", "1": "gamma(1)"},
    "gate": {"1:0": "share(1, 0)", ".75:.25": "share(0.75, 0.25)"},
    "sum": {"0.5": "gamma_sum(0.5)"},
    "scan": {".5:.25:.25": "share_factors(0.5, 0.25, 0.25)"},
    "activation": {"gradient": "gradient"},
}
"""Rules that some of the blocks are given alone, by what they act on."""


def candidates_of(model: nn.Module, family: str) -> dict[str, Changes]:
    """All candidates for a model.

    Args:
        model: A Vim or a VMamba.
        family: "vim" or "vmamba".
    """
    own = {**_SHARED, **{"vim": _VIM, "vmamba": _VMAMBA}[family]}
    return {**own, **_schedules(_blocks(model), family)}


def _blocks(model: nn.Module) -> list[str]:
    names = [name for name, _ in model.named_modules()]
    return [name for name in names if re.fullmatch(r"layers\.\d+(\.blocks\.\d+)?", name)]


def _schedules(blocks: Sequence[str], family: str) -> dict[str, Changes]:
    """Schedules over depth: a rule in some of the blocks, the default's in the others."""
    if family == "vmamba":
        blocks = [name for name in blocks if ".blocks." in name]
    schedules: dict[str, Changes] = {}
    for kind, rules in _SCHEDULED.items():
        site = _SITES[family].get(kind)
        for how, rule in rules.items() if site else ():
            for part, (low, high) in _PARTS.items():
                chosen = blocks[round(low * len(blocks)) : round(high * len(blocks))]
                schedules[f"{kind} {how}, {part}"] = {f"{b}.{site}": rule for b in chosen}
    return schedules
