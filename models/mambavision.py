"""MambaVision, Hatamizadeh and Kautz, CVPR 2025, https://arxiv.org/abs/2407.08083.

Written from the published facts; nothing here is NVIDIA's code. Parameter names are those of the
official code (NVlabs/MambaVision), so that official checkpoints load strictly. The published
weights are NVIDIA's, under CC-BY-NC-SA-4.0.
"""

from collections.abc import Sequence
from typing import Any, cast

from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vimlrp.errors import InputError
from vimlrp.models.builder import build, note_weights, vision_cfg
from vimlrp.models.mambavision_blocks import Stem
from vimlrp.models.mambavision_levels import (
    CONV_LEVELS,
    Level,
    conv_blocks,
    drop_rates,
    token_blocks,
)
from vimlrp.sites import BatchNorm2d, Linear

__all__ = ["MambaVision"]


class MambaVision(nn.Module):
    """MambaVision: two levels of convolutions, two of scans and attention within windows.

    Images may have any size; maps are padded to whole windows.

    Args:
        in_chans: Channels of the input.
        num_classes: Size of the classifier, 0 for none.
        global_pool: "avg" for the mean over the map, "" for none.
        dim: Channels of the first level; they double from level to level.
        in_dim: Channels between the convolutions of the stem.
        depths: Blocks of each level. The second half of those of the last two levels attend, one
            less of an odd number.
        num_heads: Attention heads of each level.
        window_size: Side of the windows of each level, in cells of its map.
        mlp_ratio: Hidden channels of the MLPs over their width.
        d_state: Size N of the state of each channel of the scans.
        d_conv: Width of the convolutions beside the scans.
        layer_scale: Initial factor of the branches in the last two levels, None for no factors.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from the first.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 80,
        in_dim: int = 32,
        depths: Sequence[int] = (1, 3, 8, 4),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        window_size: Sequence[int] = (8, 8, 14, 7),
        mlp_ratio: float = 4.0,
        d_state: int = 8,
        d_conv: int = 3,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_pool(global_pool)
        _check_widths(dim, depths, num_heads, window_size)
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = dim * 2 ** (len(depths) - 1)
        self.feature_info = _feature_info(dim, depths)
        self.patch_embed = Stem(in_chans, in_dim, dim)
        scan = {"d_state": d_state, "d_conv": d_conv}
        token = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale}
        rates = drop_rates(depths, drop_path_rate)
        self.levels = nn.ModuleList(
            Level(
                dim * 2**i,
                conv_blocks(dim * 2**i, rates[i])
                if i < CONV_LEVELS
                else token_blocks(dim * 2**i, rates[i], num_heads[i], scan, token),
                window=None if i < CONV_LEVELS else window_size[i],
                downsample=i < len(depths) - 1,
            )
            for i in range(len(depths))
        )
        self.norm: nn.Module = BatchNorm2d(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to the normalised map of the last level, (B, h, w, D)."""
        x = self.patch_embed(x)
        for level in self.levels:
            x = level(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the map and classify: (B, h, w, D) to (B, C), or (B, D) with `pre_logits`."""
        x = x.mean(dim=(1, 2)) if self.global_pool == "avg" else x
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of the levels, each before the convolution to the next, as timm asks for them.

        Args:
            x: Images, (B, 3, H, W).
            indices: Which levels; the last n for a number, all for None.
            norm: Normalise the map of the last level.
            stop_early: Stop after the last level asked for; the output is then its map.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Leave out the output of `forward_features`.

        Returns:
            The maps, or that output and the maps.

        Raises:
            InputError: If `output_fmt` is neither.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise InputError(f"output_fmt is {output_fmt!r}; give 'NCHW' or 'NHWC'")
        take, last = feature_take_indices(len(self.levels), indices)
        x, maps = self.patch_embed(x), []
        levels = self._levels()[: last + 1] if stop_early else self._levels()
        for i, level in enumerate(levels):
            features = level.features(x)
            if i in take:
                final = norm and i == len(self.levels) - 1
                maps.append(self.norm(features) if final else features)
            x = level.downsample(features)
        if output_fmt == "NCHW":
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if intermediates_only:
            return maps
        return self.norm(x) if len(levels) == len(self.levels) else x, maps

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what `forward_intermediates` does not need for some levels.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Drop the last normalisation.
            prune_head: Drop the classifier.

        Returns:
            The indices, counted from the first level.
        """
        take, last = feature_take_indices(len(self.levels), indices)
        self.levels = self.levels[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on top.

        Args:
            num_classes: Its size, 0 for none.
            global_pool: Another pooling, or None to keep it.
        """
        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        note_weights(self, None)
        weight = next(self.parameters())
        self.head = self._classifier(num_classes).to(weight.device, weight.dtype)

    def complete_cuts(self) -> tuple[str, ...]:
        """Modules whose outputs together carry all relevance, from input to output."""
        levels = []
        for i, level in enumerate(self._levels()):
            levels += [f"levels.{i}.blocks.{j}" for j in range(len(level.blocks))]
            levels.append(f"levels.{i}")
        return ("patch_embed.conv_down.0", "patch_embed", *levels, "norm", "head")

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside all one-dimensional ones."""
        return {name for name, _ in self.named_parameters() if name.endswith("A_log")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass of training."""
        for level in self._levels():
            level.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, as timm's layer decay expects.

        Args:
            coarse: Take each level as one group.
        """
        fine = [
            (r"^levels\.(\d+)\.blocks\.(\d+)", None),
            (r"^levels\.(\d+)\.downsample", (99998,)),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^levels\.(\d+)" if coarse else fine}

    def _levels(self) -> list[Level]:
        return cast("list[Level]", list(self.levels))

    def _classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = Linear(self.num_features, num_classes, kind="head")
        trunc_normal_(head.weight, std=0.02)
        return head


def _feature_info(dim: int, depths: Sequence[int]) -> list[dict[str, Any]]:
    """What timm asks of each map that `forward_intermediates` returns."""
    return [
        {"num_chs": dim * 2**i, "reduction": 4 * 2**i, "module": f"levels.{i}.blocks.{depth - 1}"}
        for i, depth in enumerate(depths)
    ]


def _check_pool(global_pool: str) -> None:
    if global_pool not in ("avg", ""):
        raise InputError(f"global_pool is {global_pool!r}; give 'avg', or '' for none")


def _check_widths(
    dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: Sequence[int]
) -> None:
    if not len(depths) == len(num_heads) == len(window_size):
        raise InputError(
            f"depths, num_heads and window_size have {len(depths)}, {len(num_heads)} and "
            f"{len(window_size)} entries; give one for each level in all three"
        )
    for i in range(CONV_LEVELS, len(depths)):
        if (dim * 2**i) % num_heads[i]:
            raise InputError(
                f"level {i} is {dim * 2**i} wide, which {num_heads[i]} heads cannot share evenly; "
                "give a divisor in num_heads"
            )


def fit_state_dict(state: dict[str, Tensor], model: MambaVision) -> dict[str, Tensor]:  # noqa: ARG001
    """Fit a checkpoint to a model: unwrap training files, and take the encoder of a larger model.

    Args:
        state: Weights, or a training checkpoint that holds them under "state_dict" or "model".
        model: The model that will load them.
    """
    inner: Any = state.get("state_dict", state.get("model", state))
    encoder = {k.removeprefix("encoder."): v for k, v in inner.items() if k.startswith("encoder.")}
    return encoder or dict(inner)


_DEEP: dict[str, Any] = {"in_dim": 64, "layer_scale": 1e-5}

_CONFIGS: dict[str, dict[str, Any]] = {
    "test_mambavision": {
        "dim": 8,
        "in_dim": 6,
        "depths": (1, 1, 3, 2),
        "num_heads": (1, 1, 2, 4),
        "window_size": (4, 4, 4, 2),
        "mlp_ratio": 2.0,
        "d_state": 4,
    },
    "mambavision_tiny_224": {},
    "mambavision_tiny2_224": {"depths": (1, 3, 11, 4)},
    "mambavision_small_224": {"dim": 96, "in_dim": 64, "depths": (3, 3, 7, 5)},
    "mambavision_base_224": {"dim": 128, "depths": (3, 3, 10, 5), **_DEEP},
    "mambavision_large_224": {
        "dim": 196,
        "depths": (3, 3, 10, 5),
        "num_heads": (4, 8, 16, 32),
        **_DEEP,
    },
    "mambavision_large2_224": {
        "dim": 196,
        "depths": (3, 3, 12, 5),
        "num_heads": (4, 8, 16, 32),
        **_DEEP,
    },
}


def _published(short: str, name: str, crop: float = 1.0) -> dict[str, Any]:
    return _cfg(
        hf_hub_id=f"nvidia/MambaVision-{short}-1K",
        hf_hub_filename=f"mambavision_{name}_1k.pth.tar",
        license="cc-by-nc-sa-4.0",
        crop_pct=crop,
    )


def _cfg(**overrides: Any) -> dict[str, Any]:
    ours = {"first_conv": "patch_embed.conv_down.0", "crop_pct": 1.0, "crop_mode": "center"}
    return vision_cfg(**{**ours, "pool_size": (7, 7), **overrides})


default_cfgs = generate_default_cfgs(
    {
        "test_mambavision.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
        "mambavision_tiny_224.in1k": _published("T", "tiny"),
        "mambavision_tiny2_224.in1k": _published("T2", "tiny2", 0.98),
        "mambavision_small_224.in1k": _published("S", "small", 0.93),
        "mambavision_base_224.in1k": _published("B", "base"),
        "mambavision_large_224.in1k": _published("L", "large"),
        "mambavision_large2_224.in1k": _published("L2", "large2"),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MambaVision:
    return build(MambaVision, variant, pretrained, fit_state_dict, _CONFIGS[variant], kwargs)


@register_model
def test_mambavision(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """A narrow MambaVision for tests."""
    return _create("test_mambavision", pretrained, **kwargs)


@register_model
def mambavision_tiny_224(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T."""
    return _create("mambavision_tiny_224", pretrained, **kwargs)


@register_model
def mambavision_tiny2_224(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T2."""
    return _create("mambavision_tiny2_224", pretrained, **kwargs)


@register_model
def mambavision_small_224(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-S."""
    return _create("mambavision_small_224", pretrained, **kwargs)


@register_model
def mambavision_base_224(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-B."""
    return _create("mambavision_base_224", pretrained, **kwargs)


@register_model
def mambavision_large_224(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L."""
    return _create("mambavision_large_224", pretrained, **kwargs)


@register_model
def mambavision_large2_224(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2."""
    return _create("mambavision_large2_224", pretrained, **kwargs)
