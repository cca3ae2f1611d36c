"""Foreign models with sites in place of the parts that need rules.

`wrap` reads a model and changes nothing about it; what it returns shares the parameters.
"""

from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from vimlrp.engine import check_eager
from vimlrp.errors import UnsupportedModelError
from vimlrp.sites import AffineSite, Site
from vimlrp.wrapping import (
    activations,
    affine,
    convolutional,
    gates,
    norms,
    official,
    transformers,
)
from vimlrp.wrapping.affine import Convolution
from vimlrp.wrapping.cloning import Table, clone, structure

__all__ = ["wrap"]

_TABLE: Table = {
    **affine.TABLE,
    **activations.TABLE,
    **norms.TABLE,
    **gates.TABLE,
    **convolutional.TABLE,
    **transformers.TABLE,
}

_SPREAD = (nn.DataParallel, nn.parallel.DistributedDataParallel)

_lock = Lock()
_wrapped: WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = WeakKeyDictionary()


def wrap(model: nn.Module) -> nn.Module:
    """Build the counterpart of a foreign model whose relevance has rules everywhere.

    The model is only read. Its counterpart shares the parameters and buffers, so it follows when
    the model is trained on, and is kept until modules of the model change. `vimlrp.explain` wraps
    by itself.

    Args:
        model: A classifier of timm's (`vimlrp.guard.WRAPPED_FAMILIES` lists families), an instance
            of an official Vision Mamba class, or a model made of layers of those.

    Returns:
        The counterpart, with the same logits; the model itself if it is built from sites.

    Raises:
        UnsupportedModelError: If the model is compiled or spread over devices by a wrapper. What
            has no rule inside a model is refused when it is explained.

    Example:
        >>> model = timm.create_model("resnet18")  # doctest: +SKIP
        >>> print(vimlrp.wrap(model))  # where rules act  # doctest: +SKIP
    """
    # Quick for a model built from sites, since this runs for every batch: what is compiled inside
    # one is refused when it is explained.
    if not _is_wrapper(model) and any(isinstance(module, Site) for module in model.modules()):
        return model
    _check_bare(model)
    rebuilt = official.rebuild(model)
    return _kept(model) if rebuilt is None else rebuilt


def _kept(model: nn.Module) -> nn.Module:
    """The site model built before, as long as the model's structure is what it was."""
    state = structure(model)
    with _lock:
        known = _wrapped.get(model)
        if known is None or known[0] != state:
            known = state, _site_model(model)
            if state is not None:
                _wrapped[model] = known
    return known[1]


def _is_wrapper(model: nn.Module) -> bool:
    compiled = hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
    return compiled or isinstance(model, _SPREAD)


def _check_bare(model: nn.Module) -> None:
    check_eager(model)
    if isinstance(model, _SPREAD):
        raise UnsupportedModelError(
            f"the model is inside a {type(model).__name__}: give model.module, the model itself"
        )


def _site_model(model: nn.Module) -> nn.Module:
    new, clones = clone(model, _TABLE)
    first = _first_layer(new)
    if first is not None:
        first.kind, first.cells = "patch_embedding", _cells(model, first)
    for head in _heads(model):
        site = clones.get(id(head))
        if isinstance(site, AffineSite):
            site.kind = "head"
    vars(new)["complete_cuts"] = partial(tuple, _cuts(model, new, first))
    return new


def _cuts(model: nn.Module, new: nn.Module, first: Convolution | None) -> list[str]:
    """Modules whose outputs carry all relevance: the first layer, and the ends of timm's stages."""
    names = [name for name, module in new.named_modules() if module is first]
    features: Any = getattr(model, "feature_info", None) or []
    if type(model).__name__.startswith("EfficientViM"):  # its stages send states past one another
        return [*names, "patch_embed"]
    stages = {info.get("module") for info in features if isinstance(info, dict)} - {*names}
    named = ((name, module) for name, module in new.named_modules() if name in stages)
    return [*names, *(name for name, m in named if any(isinstance(s, Site) for s in m.modules()))]


def _first_layer(model: nn.Module) -> Convolution | None:
    """The layer on pixels: where timm's configuration says, else the first convolution."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    modules = dict(model.named_modules())
    named = modules.get(str(config.get("first_conv")))
    if isinstance(named, Convolution):
        return named
    return next((m for m in modules.values() if isinstance(m, Convolution)), None)


def _cells(model: nn.Module, first: Convolution) -> int:
    """How many outputs of the first layer lie along a side of a cell of the first map."""
    features: Any = getattr(model, "feature_info", None) or []
    sides = [info["reduction"] for info in features if isinstance(info, dict)]
    coarse = min((side for side in sides if side >= 4), default=0)  # 2 is inside a stem
    return max(1, coarse // int(first.stride[0]))


def _heads(model: nn.Module) -> list[nn.Module]:
    get: Any = getattr(model, "get_classifier", None)
    heads = [] if get is None else get()
    heads = heads if isinstance(heads, tuple | list) else [heads]
    return [module for head in heads if isinstance(head, nn.Module) for module in head.modules()]
