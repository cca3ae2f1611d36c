"""Instances of the official Vision Mamba code, rebuilt as models of `vimlrp.models`.

Their packages are not needed: a class is recognised by its name, and its architecture is read off
the instance. The rebuilt model holds the very parameters of the original.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vimlrp.errors import UnsupportedModelError
from vimlrp.inputs import device_and_dtype
from vimlrp.models import MambaVision, VisionMamba, VMamba
from vimlrp.models.comparison import Comparison
from vimlrp.models.vmamba_keys import fit_state_dict
from vimlrp.modes import evaluation_mode
from vimlrp.sites import Site
from vimlrp.wrapping import official_mambavision, official_vim, official_vmamba

__all__ = ["rebuild"]

_BOUND = 1e-3
"""Relative L2 error of the logits up to which two models count as the same."""

_PROBE = (64, 96)
"""Height and width of the test image for classes that take any size: small and not square."""

_NOT_RUN = (
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the official classes raise where their CUDA kernels are missing."""


@dataclass(frozen=True)
class _Family:
    """An official class and what it becomes.

    Args:
        source: Its repository.
        model: The class of ours.
        options: Reads the arguments of that class off an instance.
        unsupported: Names what an instance has and ours has not.
        fit: Gives the instance's tensors our names and shapes.
    """

    source: str
    model: type[nn.Module]
    options: Callable[[Any], dict[str, Any]]
    unsupported: Callable[[Any], Iterator[str]]
    fit: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = lambda state, _: state


_FAMILIES = {
    "VisionMamba": _Family(
        "hustvl/Vim", VisionMamba, official_vim.options, official_vim.unsupported
    ),
    "VSSM": _Family(
        "MzeroMiko/VMamba",
        VMamba,
        official_vmamba.options,
        official_vmamba.unsupported,
        fit_state_dict,
    ),
    "MambaVision": _Family(
        "NVlabs/MambaVision",
        MambaVision,
        official_mambavision.options,
        official_mambavision.unsupported,
    ),
}


def rebuild(model: nn.Module) -> nn.Module | None:
    """Rebuild an instance of an official class from sites, or return None for any other model.

    The classes are `VisionMamba` of hustvl/Vim, `VSSM` of MzeroMiko/VMamba (in both copies of its
    code) and `MambaVision` of NVlabs/MambaVision, and their subclasses. Where the original runs,
    its logits on a random image are compared; where it cannot, a warning says so.

    Args:
        model: Any module; it is left as it is.

    Returns:
        A model in evaluation mode with the original's own parameters and buffers, so that later
        training of the original is seen. It is kept until the original's options change or its
        tensors are replaced or moved.

    Raises:
        UnsupportedModelError: If the model is inside another, has an option that vimlrp does
            not know, or gives other logits than the rebuilt one.
    """
    _check_bare(model)
    family = _family_of(model)
    if family is None:
        return None
    options = _configuration(model, family)
    # The numbers of a tensor may change, but not where they lie.
    tensors = (*model.parameters(), *model.buffers())
    key = options, [(x.data_ptr(), x.dtype, x.device) for x in tensors]
    known = _rebuilt.get(model)
    if known is not None and known[0] == key:
        return known[1]
    ours = _build(model, family, options)
    _rebuilt[model] = key, ours
    return ours


_rebuilt: WeakKeyDictionary[nn.Module, tuple[object, nn.Module]] = WeakKeyDictionary()


def _build(model: nn.Module, family: _Family, options: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        ours = family.model(**options)
    _share(ours, family.fit(_tensors(model), ours), family)
    _check_eps(model, ours)
    _copy_preprocessing(model, ours)
    _check_logits(model, ours.eval(), options)
    return ours


_INSIDE = {
    "FullyShardedDataParallel": "module",
    "MambaVisionModel": "model",
    "MambaVisionModelForImageClassification": "model",
}
"""Classes around a model, the last two from Hugging Face, and where the model is."""


def _check_bare(model: nn.Module) -> None:
    place = _INSIDE.get(type(model).__name__)
    if place is not None and isinstance(getattr(model, place, None), nn.Module):
        raise UnsupportedModelError(
            f"the model is inside a {type(model).__name__}: give model.{place}, the model itself"
        )


def _family_of(model: nn.Module) -> _Family | None:
    names = [kind.__name__ for kind in type(model).__mro__]
    known = next((_FAMILIES[name] for name in names if name in _FAMILIES), None)
    if known is None or any(isinstance(module, Site) for module in model.modules()):
        return None
    return known


def _configuration(model: nn.Module, family: _Family) -> dict[str, Any]:
    name = type(model).__name__
    try:
        faults = list(family.unsupported(model))
        options = {} if faults else family.options(model)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"this {name} has the name of {family.source}'s class but not its structure ({error}): "
            "rename the class to have it explained by its modules, or build it from vimlrp.sites"
        ) from error
    if faults:
        raise UnsupportedModelError(
            f"this {name} has {'; '.join(faults)}, and there are no rules for it in vimlrp: give a "
            f"{name} with the options of the models that {family.source} has published"
        )
    return options


def _share(ours: nn.Module, tensors: dict[str, Tensor], family: _Family) -> None:
    """Put the original's own parameters and buffers into our model, all of them or none."""
    difference = Comparison.of(tensors, ours.state_dict())
    if difference:
        lines = difference.lines(theirs="the original")
        raise UnsupportedModelError(
            f"this model is not built as those that {family.source} has published, so there are no "
            "rules for it in vimlrp:\n" + "\n".join(lines)
        )
    for name, tensor in tensors.items():
        place, _, leaf = name.rpartition(".")
        owner = ours.get_submodule(place)
        if leaf in owner._parameters and not isinstance(tensor, nn.Parameter):
            # A view of one: the numbers are shared, whatever optimiser writes them.
            tensor = nn.Parameter(tensor.detach(), tensor.requires_grad)
        setattr(owner, leaf, tensor)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a state_dict of the model holds, but the parameters and buffers themselves."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    found |= dict(model.named_buffers(remove_duplicate=False))
    return {name: found[name] for name in model.state_dict() if name in found}


def _check_eps(model: nn.Module, ours: nn.Module) -> None:
    theirs = _eps_by_weight(model)
    for weight, (name, eps) in _eps_by_weight(ours).items():
        _, other = theirs.get(weight, (name, eps))
        if other != eps:
            raise UnsupportedModelError(
                f"the eps of {name} is {other} in this {type(model).__name__}, where vimlrp's "
                f"model has {eps}: set it to that in the original"
            )


def _eps_by_weight(model: nn.Module) -> dict[int, tuple[str, float]]:
    """Name and eps of every norm, by the identity of its weight."""
    found: dict[int, tuple[str, float]] = {}
    for name, module in model.named_modules():
        eps: Any = getattr(module, "eps", None)
        if eps is not None:
            found[id(getattr(module, "weight", None))] = (name, eps)
    return found


def _copy_preprocessing(model: nn.Module, ours: nn.Module) -> None:
    """Take over how photos are prepared where the original says it rightly.

    Vim's instances carry the configuration of timm's ViT, with other colours than the training
    script's; timm's defaults are Vim's and VMamba's protocol.
    """
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and isinstance(ours, MambaVision):
        vars(ours)["pretrained_cfg"] = dict(config)


def _check_logits(model: nn.Module, ours: nn.Module, options: Mapping[str, Any]) -> None:
    device, dtype = device_and_dtype(ours)
    shape = (1, options["in_chans"], *options.get("img_size", _PROBE))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    name = type(model).__name__
    with torch.no_grad(), _full_precision(x):
        try:
            with evaluation_mode(model):
                theirs = model(x)
        except _NOT_RUN as error:
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(
                f"this {name} was rebuilt, but could not be run on {device} to compare its logits "
                f"({type(error).__name__}: {reason})",
                stacklevel=4,
            )
            return
        logits = ours(x)
    _check_equal(name, logits, theirs)


def _check_equal(name: str, logits: Tensor, theirs: Any) -> None:
    if not isinstance(theirs, Tensor) or theirs.shape != logits.shape:
        given = tuple(theirs.shape) if isinstance(theirs, Tensor) else type(theirs).__name__
        raise UnsupportedModelError(
            f"this {name} returns {given} for an image, where {tuple(logits.shape)} logits are "
            "explained: give the classifier alone"
        )
    bound = max(_BOUND, 16 * torch.finfo(logits.dtype).eps)  # more in half precision
    gap, size = (logits.double() - theirs.double()).norm(), theirs.double().norm()
    error = float(gap / size.clamp(min=torch.finfo(torch.float64).tiny))
    if not error <= bound:
        raise UnsupportedModelError(
            f"this {name} was rebuilt, but its logits differ from the original's by {error:.1e} of "
            f"their size, where {bound:.0e} is accepted: the original computes something else than "
            "its options say, such as a patched forward"
        )


@contextmanager
def _full_precision(x: Tensor) -> Iterator[None]:
    """Switch TF32 off, which would move the logits of both models by about the bound."""
    if not x.is_cuda:
        yield
        return
    cudnn: Any = torch.backends.cudnn
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
