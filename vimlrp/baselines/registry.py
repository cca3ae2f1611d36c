"""All methods by name."""

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

from vimlrp.baselines import grad_cam, gradients, priors, rollout, sampling
from vimlrp.baselines.contract import EXTRA, Method, Models
from vimlrp.baselines.grad_cam import MAPPED
from vimlrp.baselines.lrp import EXPLAINED, lrp
from vimlrp.baselines.mixers import SCANNED
from vimlrp.baselines.sampling import SAMPLES, STEPS, WINDOWS
from vimlrp.composites import COMPOSITES
from vimlrp.errors import InputError

__all__ = ["METHODS", "method"]

_ANY = Models("any classifier", lambda _: True)

_GRADIENT = "Shrikumar et al. 2016"
_HIDDEN = "Ali, Zimerman and Wolf, ACL 2025"
_LRP = "Jafari et al., NeurIPS 2024"
_SMOOTH = "Smilkov et al. 2017"

_PLAIN = (
    Method("random", priors.random_map, "none", _ANY, 0, 0),
    Method("centre_prior", priors.centre_prior, "Zhang et al., ECCV 2016", _ANY, 0, 0),
    Method("gradient", gradients.gradient, "Simonyan et al. 2014", _ANY, 1, 1),
    Method("saliency", gradients.saliency, "Simonyan et al. 2014", _ANY, 1, 1),
    Method("gradient_x_input", gradients.gradient_x_input, _GRADIENT, _ANY, 1, 1),
    Method("smoothgrad", sampling.smoothgrad, _SMOOTH, _ANY, SAMPLES, SAMPLES, EXTRA),
    Method(
        "smoothgrad_x_input", sampling.smoothgrad_x_input, _SMOOTH, _ANY, SAMPLES, SAMPLES, EXTRA
    ),
    Method(
        "integrated_gradients",
        sampling.integrated_gradients,
        "Sundararajan et al., ICML 2017",
        _ANY,
        STEPS,
        STEPS,
        EXTRA,
    ),
    Method(
        "occlusion",
        sampling.occlusion,
        "Zeiler and Fergus, ECCV 2014",
        _ANY,
        WINDOWS**2 + 1,
        0,
        EXTRA,
    ),
    Method("raw_attention", rollout.raw_attention, _HIDDEN, SCANNED, 1, 0),
    Method("attention_rollout", rollout.attention_rollout, _HIDDEN, SCANNED, 1, 0),
    Method("mamba_attribution", rollout.mamba_attribution, _HIDDEN, SCANNED, 1, 1),
    Method("grad_cam", grad_cam.grad_cam, "Selvaraju et al., ICCV 2017", MAPPED, 1, 1, EXTRA),
)

# Any model has the plain gradient times the input, and not only those of which every part has a
# rule, so that the method of the name is no composite.
_COMPOSITES = tuple(
    Method(name, lrp(name), _LRP, EXPLAINED, 1, 1)
    for name in COMPOSITES
    if name != "gradient_x_input"
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {entry.name: entry for entry in (*_PLAIN, *_COMPOSITES)}
)
"""The baselines, and every composite of `vimlrp.COMPOSITES` under its name."""


def method(name: str) -> Method:
    """Find a method.

    Args:
        name: Of `METHODS`.

    Raises:
        InputError: If there is none of that name, with those that there are.

    Example:
        >>> method("occlusion").single_pass
        False
    """
    try:
        return METHODS[name]
    except KeyError:
        near = get_close_matches(name, METHODS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"there is no method {name!r}{hint}; the methods are {', '.join(METHODS)}"
        ) from None
