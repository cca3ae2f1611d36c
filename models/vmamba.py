"""VMamba, Liu et al., NeurIPS 2024, https://arxiv.org/abs/2401.10166.

Written from the published facts. Parameter names are those of the official classification code
(MzeroMiko/VMamba, `classification/models/vmamba.py`), so that official checkpoints load strictly.
Two generations are published: "v0" (the vanilla models: gated, 16 states, patch merging, no MLP)
and "v2" (all others, `forward_type="v05_noz"`: no gate, 1 state, convolutional stem and
downsampling, an MLP after every mixer). Maps are (B, H, W, C) throughout.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vimlrp.errors import InputError
from vimlrp.models.builder import build, imagenette_cfg, note_weights, vision_cfg
from vimlrp.models.stages import Generation, downsampling, stem
from vimlrp.models.vmamba_blocks import Block, Stage
from vimlrp.models.vmamba_keys import fit_state_dict
from vimlrp.sites import LayerNorm, Linear

__all__ = ["VMamba", "fit_state_dict"]

_PATCH = 4
"""Side in pixels of a cell of the first map."""


class Classifier(nn.Module):
    """The last norm and the linear classifier, under the official code's names.

    Args:
        dim: Width C.
        head: The classifier.
        eps: Of the norm.
    """

    def __init__(self, dim: int, head: nn.Module, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, C) to logits."""
        return self.head(x)


class VMamba(nn.Module):
    """VMamba: a stem and stages of blocks that scan their map along four routes.

    Any image of at least 4 x 4 pixels is taken. Where the sides are no multiples of 32, maps are
    rounded as in the official code: "v0" leaves out the last pixels that fill no patch, and pads
    odd maps with zeros; "v2" rounds up, with windows that hang over the edge.

    Args:
        img_size: Height and width to which photos are resized, or one number for both; tensors of
            other sizes are accepted too.
        in_chans: Channels of the input.
        num_classes: Size of the classifier, 0 for none.
        global_pool: "avg" for the mean over the map, "" for none.
        dim: Width C of the first stage; every further stage has twice that of the one before.
        depths: Blocks of each stage.
        generation: "v0" or "v2"; sets stem, downsampling, gate and convolution bias.
        d_state: Size N of the state of each channel.
        ssm_ratio: Channels of the scans over the width.
        mlp_ratio: Hidden width of the MLPs over the width, 0 for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block, growing linearly from the first.
        eps: Of every norm.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        generation: Generation = "v2",
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _check_options(generation, global_pool)
        self.generation, self.global_pool, self.num_classes = generation, global_pool, num_classes
        self.set_input_size(img_size)
        widths = [dim * 2**stage for stage in range(len(depths))]
        self.num_features = self.head_hidden_size = self.embed_dim = widths[-1]
        self.patch_embed = stem(generation, in_chans, dim, eps)
        rates = iter(_drop_rates(drop_path_rate, sum(depths)))
        gated = generation == "v0"
        mixer = {"d_state": d_state, "ratio": ssm_ratio, "gated": gated, "conv_bias": gated}
        self.layers = nn.ModuleList()
        for width, depth in zip(widths, depths, strict=True):
            blocks = [Block(width, next(rates), mlp_ratio, eps, **mixer) for _ in range(depth)]
            last = width == widths[-1]
            down = nn.Identity() if last else downsampling(generation, width, eps)
            self.layers.append(Stage(blocks, down))
        self.feature_info = [
            {"num_chs": width, "reduction": _PATCH * 2**i, "module": f"layers.{i}.blocks"}
            for i, width in enumerate(widths)
        ]
        self.classifier = Classifier(self.num_features, self._head(num_classes), eps)
        self.head_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to the last, normalised map, (B, h, w, C)."""
        x = self.embed(x)
        for stage in self._stages():
            x = stage(x)
        return self.classifier.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the map and classify: (B, h, w, C) to (B, classes), or (B, C) with `pre_logits`."""
        if self.global_pool == "avg":
            x = x.mean(dim=(1, 2))
        x = self.head_drop(x)
        return x if pre_logits else self.classifier(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The map of each stage before it is made coarser, as timm's contract has it.

        Args:
            x: (B, 3, H, W).
            indices: Stages: the last so many, or a list; all by default.
            norm: Normalise the last stage's map as the classifier does.
            stop_early: Leave out the stages after the last one wanted.
            output_fmt: "NCHW" for maps (B, C, h, w), "NHWC" for (B, h, w, C).
            intermediates_only: Return the maps alone.

        Returns:
            The maps, after the output of `forward_features` unless `intermediates_only`.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise InputError(f"output_fmt is {output_fmt!r}; give 'NCHW' or 'NHWC'")
        wanted, last = feature_take_indices(len(self.layers), indices)
        maps, x = [], self.embed(x)
        for i, stage in enumerate(self._stages()[: last + 1 if stop_early else None]):
            x = stage.own_map(x)
            if i in wanted:
                out = self.classifier.norm(x) if norm and i == len(self.layers) - 1 else x
                maps.append(out.permute(0, 3, 1, 2) if output_fmt == "NCHW" else out)
            x = stage.downsample(x)
        return maps if intermediates_only else (self.classifier.norm(x), maps)

    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to the first map, (B, h, w, C)."""
        if min(x.shape[-2:]) < _PATCH:
            raise InputError(
                f"the input is {x.shape[-2]} x {x.shape[-1]} pixels, too small for one patch: "
                f"give at least {_PATCH} x {_PATCH}, best {self.img_size[0]} x {self.img_size[1]}"
            )
        return self.patch_embed(x)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the size to which photos are resized; no weight depends on it.

        Args:
            img_size: Height and width in pixels, or one number for both.
        """
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.img_size = int(height), int(width)

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.classifier.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on top.

        Args:
            num_classes: Its size, 0 for none.
            global_pool: Another pooling, or None to keep it.
        """
        _check_options(self.generation, self.global_pool if global_pool is None else global_pool)
        self.num_classes = num_classes
        note_weights(self, None)
        if global_pool is not None:
            self.global_pool = global_pool
        weight = self.classifier.norm.weight
        self.classifier.head = self._head(num_classes).to(weight.device, weight.dtype)

    def complete_cuts(self) -> tuple[str, ...]:
        """Modules whose outputs carry all relevance, from input to output."""
        return (
            "patch_embed.0",
            "patch_embed",
            *self._stream(),
            "classifier.norm",
            "classifier.head",
        )

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside all one-dimensional ones."""
        names = {name for name, _ in self.named_parameters()}
        return {name for name in names if name.endswith(("A_logs", "Ds", "dt_projs_bias"))}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass of training."""
        for stage in self._stages():
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, as timm's layer decay expects.

        Args:
            coarse: Take every stage as one group.
        """
        stages = [(r"^layers\.(\d+)", None)]
        blocks = [
            (r"^layers\.(\d+)\.downsample", (99998,)),  # after the blocks of its stage
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^classifier\.norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": stages if coarse else blocks}

    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.layers))

    def _stream(self) -> Iterator[str]:
        for i, stage in enumerate(self._stages()):
            yield from (f"layers.{i}.blocks.{j}" for j in range(len(stage.blocks)))
            if not isinstance(stage.downsample, nn.Identity):
                yield f"layers.{i}.downsample"

    def _head(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = Linear(self.num_features, num_classes, kind="head")
        trunc_normal_(head.weight, std=0.02)
        return head


def _check_options(generation: str, global_pool: str) -> None:
    if generation not in ("v0", "v2"):
        raise InputError(f"generation is {generation!r}; give 'v0' or 'v2'")
    if global_pool not in ("avg", ""):
        raise InputError(f"global_pool is {global_pool!r}; give 'avg', or '' for none")


def _drop_rates(last: float, count: int) -> list[float]:
    return [last * i / max(count - 1, 1) for i in range(count)]


_SIZES = {"nano": 32, "tiny": 96, "small": 96, "base": 128}
"""Width of the first stage; nano is vimlrp's own, the others are the authors'."""


def _v2(size: str, blocks: int, ratio: float) -> dict[str, Any]:
    return {"dim": _SIZES[size], "depths": (2, 2, blocks, 2), "ssm_ratio": ratio}


def _v0(size: str, blocks: int) -> dict[str, Any]:
    vanilla = {"generation": "v0", "d_state": 16, "mlp_ratio": 0.0}
    return {**_v2(size, blocks, 2.0), **vanilla}


_CONFIGS: dict[str, dict[str, Any]] = {
    "test_vmamba": {"img_size": 64, "dim": 16, "depths": (1, 1, 2, 1)},
    "test_vmamba_v0": {
        **_v0("nano", 2),
        "img_size": 64,
        "dim": 16,
        "depths": (1, 1, 2, 1),
        "d_state": 4,
    },
    "vmamba_nano_s1l8_224": _v2("nano", 8, 1.0),
    "vmamba_tiny_s1l8_224": _v2("tiny", 8, 1.0),
    "vmamba_tiny_s2l5_224": _v2("tiny", 5, 2.0),
    "vmamba_small_s1l20_224": _v2("small", 20, 1.0),
    "vmamba_small_s2l15_224": _v2("small", 15, 2.0),
    "vmamba_base_s1l20_224": _v2("base", 20, 1.0),
    "vmamba_base_s2l15_224": _v2("base", 15, 2.0),
    "vanilla_vmamba_tiny_224": _v0("tiny", 9),
    "vanilla_vmamba_small_224": _v0("small", 27),
    "vanilla_vmamba_base_224": _v0("base", 27),
}

_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/%23"
_PLACES = {"first_conv": "patch_embed.0", "classifier": "classifier.head"}


def _published(file: str) -> dict[str, Any]:
    return vision_cfg(url=f"{_RELEASES}{file}.pth", license="mit", **_PLACES)


default_cfgs = generate_default_cfgs(
    {
        "test_vmamba.untrained": vision_cfg(input_size=(3, 64, 64), **_PLACES),
        "test_vmamba_v0.untrained": vision_cfg(input_size=(3, 64, 64), **_PLACES),
        "vmamba_nano_s1l8_224.imagenette": imagenette_cfg("vmamba_nano_s1l8_224", **_PLACES),
        "vmamba_tiny_s1l8_224.in1k": _published("v2cls/vssm1_tiny_0230s_ckpt_epoch_264"),
        "vmamba_tiny_s2l5_224.in1k": _published("v2cls/vssm_tiny_0230_ckpt_epoch_262"),
        "vmamba_small_s1l20_224.in1k": _published("v2cls/vssm1_small_0229s_ckpt_epoch_240"),
        "vmamba_small_s2l15_224.in1k": _published("v2cls/vssm_small_0229_ckpt_epoch_222"),
        "vmamba_base_s1l20_224.in1k": _published("v2cls/vssm1_base_0229s_ckpt_epoch_225"),
        "vmamba_base_s2l15_224.in1k": _published("v2cls/vssm_base_0229_ckpt_epoch_237"),
        "vanilla_vmamba_tiny_224.in1k": _published("v0cls/vssmtiny_dp01_ckpt_epoch_292"),
        "vanilla_vmamba_small_224.in1k": _published("v0cls/vssmsmall_dp03_ckpt_epoch_238"),
        "vanilla_vmamba_base_224.in1k": _published("v0cls/vssmbase_dp06_ckpt_epoch_241"),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VMamba:
    return build(VMamba, variant, pretrained, fit_state_dict, _CONFIGS[variant], kwargs)


@register_model
def test_vmamba(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A VMamba of five narrow blocks for tests."""
    return _create("test_vmamba", pretrained, **kwargs)


@register_model
def test_vmamba_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A vanilla VMamba of five narrow blocks for tests."""
    return _create("test_vmamba_v0", pretrained, **kwargs)


@register_model
def vmamba_nano_s1l8_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T at a third of its width, small enough to keep its weights in the package."""
    return _create("vmamba_nano_s1l8_224", pretrained, **kwargs)


@register_model
def vmamba_tiny_s1l8_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, as many scan channels as the width."""
    return _create("vmamba_tiny_s1l8_224", pretrained, **kwargs)


@register_model
def vmamba_tiny_s2l5_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T, twice as many scan channels, fewer blocks."""
    return _create("vmamba_tiny_s2l5_224", pretrained, **kwargs)


@register_model
def vmamba_small_s1l20_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, as many scan channels as the width."""
    return _create("vmamba_small_s1l20_224", pretrained, **kwargs)


@register_model
def vmamba_small_s2l15_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S, twice as many scan channels, fewer blocks."""
    return _create("vmamba_small_s2l15_224", pretrained, **kwargs)


@register_model
def vmamba_base_s1l20_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, as many scan channels as the width."""
    return _create("vmamba_base_s1l20_224", pretrained, **kwargs)


@register_model
def vmamba_base_s2l15_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B, twice as many scan channels, fewer blocks."""
    return _create("vmamba_base_s2l15_224", pretrained, **kwargs)


@register_model
def vanilla_vmamba_tiny_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """The first VMamba-T."""
    return _create("vanilla_vmamba_tiny_224", pretrained, **kwargs)


@register_model
def vanilla_vmamba_small_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """The first VMamba-S."""
    return _create("vanilla_vmamba_small_224", pretrained, **kwargs)


@register_model
def vanilla_vmamba_base_224(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """The first VMamba-B."""
    return _create("vanilla_vmamba_base_224", pretrained, **kwargs)
