"""Loading weight files into models, whole or not at all."""

import os
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from vimlrp.errors import CheckpointError
from vimlrp.models import mambavision, vim, vmamba
from vimlrp.models.builder import Fit, note_weights
from vimlrp.models.comparison import Comparison
from vimlrp.models.reading import WeightFile, Weights, read_weights

__all__ = ["LoadedCheckpoint", "load_checkpoint"]

_FITS: dict[type[nn.Module], Fit] = {
    vim.VisionMamba: vim.fit_state_dict,
    vmamba.VMamba: vmamba.fit_state_dict,
    mambavision.MambaVision: mambavision.fit_state_dict,
}
"""What turns the tensors of a published file into those of a model of its family."""

_POSITION = "pos_embed"


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What `load_checkpoint` did.

    Args:
        path: The file.
        entry: The entry of the file that was taken, such as "model" or "model_ema"; "" where the
            file is a bare state_dict.
        tensors: How many tensors were copied into the model.
        interpolated: Whether the position embedding came from another grid of patches.
        missing: Tensors of the model that kept their values; none unless `strict=False`.
        unexpected: Tensors of the file that were left out; none unless `strict=False`.
    """

    path: Path
    entry: str
    tensors: int
    interpolated: bool
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    weights: Weights = "auto",
    strict: bool = True,
) -> LoadedCheckpoint:
    """Load an official checkpoint, a state_dict or a safetensors file into a model.

    Nothing in the file is executed, and where loading fails the model keeps every weight. Keys may
    carry the prefix of DistributedDataParallel; float16 and bfloat16 become the model's type; the
    position embedding of another square grid is interpolated.

    Vim's training checkpoints hold the trained weights (`model`) and their moving average
    (`model_ema`). "auto" takes the trained ones. The published accuracy of Vim-B is reported for
    its moving average: `weights="model_ema"`. Of VMamba's names all that its code has used are
    known.

    Example:
        >>> model = timm.create_model("vim_tiny_patch16_224")  # doctest: +SKIP
        >>> vimlrp.load_checkpoint(model, "vim_t_midclstok_76p1acc.pth").tensors  # doctest: +SKIP
        415

    Args:
        model: A model of the file's architecture, changed in place.
        path: The file.
        weights: Which weights of a training checkpoint to take.
        strict: Demand that file and model hold the same tensors. Otherwise those that fit are
            loaded, and the result names the rest.

    Raises:
        CheckpointError: If the file is missing, damaged, unsafe, or does not fit the model.
    """
    file = read_weights(path, weights)
    target = model.state_dict()
    state = _fitted(file, model)
    difference = Comparison.of(state, target)
    if strict and difference:
        raise CheckpointError(_explain(file, difference, model))
    fitting = {k: v for k, v in state.items() if k in target and k not in difference.reshaped}
    _check_values(file, fitting, target)
    model.load_state_dict(fitting, strict=False)
    note_weights(model, Path(path).name)
    return LoadedCheckpoint(
        path=file.path,
        entry=file.entry,
        tensors=len(fitting),
        interpolated=_POSITION in fitting and fitting[_POSITION] is not file.tensors[_POSITION],
        missing=(*difference.missing, *difference.reshaped),
        unexpected=(*difference.unexpected, *difference.reshaped),
    )


def _fitted(file: WeightFile, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file as those of a model of its family."""
    fit = next((fit for family, fit in _FITS.items() if isinstance(model, family)), None)
    try:
        return file.tensors if fit is None else fit(file.tensors, model)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _head_of(model: nn.Module) -> tuple[str, str]:
    """The names of the classifier's tensors."""
    classifier = getattr(model, "get_classifier", lambda: None)()
    names = [name for name, module in model.named_modules() if module is classifier]
    head = names[0] if names else "head"
    return f"{head}.weight", f"{head}.bias"


def _check_values(file: WeightFile, state: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    if not state:
        raise CheckpointError(f"{file.path} holds no tensor that fits this model")
    for key, value in state.items():
        if value.is_floating_point() != target[key].is_floating_point():
            raise CheckpointError(
                f"{file.path}: {key} is {value.dtype}, where the model has {target[key].dtype}; "
                "quantised weights are not supported, give floating-point ones"
            )


def _explain(file: WeightFile, difference: Comparison, model: nn.Module) -> str:
    """Say why a file does not fit a model and what to do."""
    head = _head_of(model)
    if difference.only(*head) and head[0] in difference.reshaped:
        theirs, ours = (shape[0] for shape in difference.reshaped[head[0]])
        return (
            f"{file.path} classifies into {theirs} classes, the model into {ours}: create the "
            f"model with num_classes={theirs} (model.reset_classifier({ours}) afterwards gives a "
            "fresh head), or load all but the head with strict=False"
        )
    lines = [f"{file.path} is of another architecture than this {type(model).__name__}:"]
    lines += difference.lines()
    lines.append(_advice(file))
    return "\n".join(lines)


def _advice(file: WeightFile) -> str:
    """Name the registered variant that the file fits, if there is one."""
    variants = _variants()
    # As it is first: fitted, a file whose position embedding is interpolated fits others too.
    for fitted in (False, True):
        for name, variant in variants.items():
            classes = _classes_in(file, variant, fitted)
            if classes is not None:
                other = "" if classes == 1000 else f", num_classes={classes}"
                return f"it fits timm.create_model({name!r}{other}): create that model instead"
    return "it fits no registered model; `vimlrp models` lists them"


def _classes_in(file: WeightFile, variant: nn.Module, fitted: bool) -> int | None:
    """How many classes a file distinguishes that fits a variant, or None if it does not."""
    head = _head_of(variant)
    try:
        state = _fitted(file, variant) if fitted else file.tensors
    except CheckpointError:
        return None
    fits = Comparison.of(state, variant.state_dict()).only(*head)
    return len(state[head[0]]) if fits and head[0] in state else None


def _variants() -> dict[str, nn.Module]:
    """The registered models of this package, without memory for weights; timm's are too many."""
    names = [
        name
        for name in timm.list_models()
        if timm.models.model_entrypoint(name).__module__.startswith("vimlrp.models")
    ]
    with torch.device("meta"):
        return {name: timm.create_model(name) for name in names}
