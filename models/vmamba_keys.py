"""Names that VMamba's tensors have had: in its standalone file and in its oldest checkpoints."""

import re

from torch import Tensor, nn

from vimlrp.errors import CheckpointError

__all__ = ["fit_state_dict"]

_RENAMED = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    (r"\.op\.x_proj\.weight$", ".op.x_proj_weight"),
    (r"\.op\.dt_projs\.(weight|bias)$", r".op.dt_projs_\1"),
)
_MERGING = (
    (r"^(layers\.\d+\.downsample)\.1\.", r"\1.norm."),
    (r"^(layers\.\d+\.downsample)\.2\.", r"\1.reduction."),
)
"""Patch merging in the standalone file; a convolution has tensors of these numbers too."""


def fit_state_dict(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit a checkpoint to a VMamba: unwrap training files, give every tensor its present name.

    Tensors whose layout alone differs are viewed in the model's: linear layers saved as 1 x 1
    convolutions, and the routes' projections saved as one matrix.

    Args:
        state: Weights, or a training checkpoint that holds them under "model".
        model: The model that will load them.

    Raises:
        CheckpointError: If the state holds one tensor under two names.
    """
    state = dict(state.get("model", state))
    target = model.state_dict()
    renamed = _RENAMED + (_MERGING if "layers.0.downsample.norm.weight" in target else ())
    names = {key: _present_name(key, renamed) for key in state}
    _check_unique(names)
    return {names[key]: _like(value, target.get(names[key])) for key, value in state.items()}


def _present_name(key: str, renamed: tuple[tuple[str, str], ...]) -> str:
    for pattern, present in renamed:
        key = re.sub(pattern, present, key)
    return key


def _check_unique(names: dict[str, str]) -> None:
    first: dict[str, str] = {}
    for key, name in names.items():
        if name in first:
            raise CheckpointError(
                f"the weights hold {name} twice, as {first[name]!r} and as {key!r}: they mix the "
                "names of two versions of VMamba's code; save model.state_dict() of one version"
            )
        first[name] = key


def _like(value: Tensor, target: Tensor | None) -> Tensor:
    """View a tensor in the shape of the model's, where no number would change its meaning."""
    if target is None or value.numel() != target.numel():
        return value
    pointwise = value.shape == (*target.shape, 1, 1)
    routes = value.dim() < target.dim() and value.shape == target.flatten(0, 1).shape
    return value.reshape(target.shape) if pointwise or routes else value
