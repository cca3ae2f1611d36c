"""Vision Mamba (Vim), Zhu et al., ICML 2024, https://arxiv.org/abs/2401.09417.

Written from the published facts. Parameter names are those of the official code (hustvl/Vim,
`vim/models_mamba.py`), so that official checkpoints load strictly; the maths is its
`bimamba_type="v2"` with RMSNorm, a residual stream in float32 and learned position embeddings.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimlrp.errors import InputError
from vimlrp.models.builder import build, imagenette_cfg, note_weights, vision_cfg
from vimlrp.models.features import TokenFeatures
from vimlrp.models.fused import plans_of
from vimlrp.models.patches import PatchEmbed
from vimlrp.models.position import resample_position
from vimlrp.models.vim_blocks import Block
from vimlrp.models.vim_keys import fit_state_dict
from vimlrp.sites import Linear, Residual, RMSNorm, TokenSum
from vimlrp.tokens import TokenLayout
from vimlrp.tracing import frozen

__all__ = ["VisionMamba", "fit_state_dict"]

ClassToken = Literal["middle", "head", "tail", "double", "none"]


class VisionMamba(TokenFeatures):
    """Vim: patches, a class token among them, and bidirectional Mamba blocks.

    Args:
        img_size: Height and width of the input, or one number for both.
        patch_size: Side of a patch in pixels.
        stride: Distance between patches; None for patches that touch.
        in_chans: Channels of the input.
        num_classes: Size of the classifier, 0 for none.
        global_pool: "token" for the class token, "avg" for the mean over the sequence, "" for none.
        embed_dim: Width D.
        depth: Number of blocks.
        d_state: Size N of the state of each channel.
        d_conv: Width of the causal convolution.
        expand: Channels of the scan over D.
        class_token: Where it stands in the sequence.
        divide_out: Average the two directions instead of summing them.
        dynamic_img_size: Accept any image size, interpolating the position embedding.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after the position embedding.
        drop_path_rate: Stochastic depth of the last block, growing linearly from the first.
        eps: Of every RMSNorm.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        class_token: ClassToken = "middle",  # noqa: S107
        divide_out: bool = True,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        _check_pool(class_token, global_pool)
        self.pos_embed: nn.Parameter
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.dynamic_img_size, self.grad_checkpointing = dynamic_img_size, False
        self.img_size = _pair(img_size)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, stride or patch_size)
        self.layout = TokenLayout(self.patch_embed.grid(*self.img_size), class_token)
        self._add_tokens(class_token)
        self.token_sum = TokenSum()
        self.pos_drop = nn.Dropout(pos_drop_rate)
        mixer = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "divide_out": divide_out}
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            Block(embed_dim, rate, eps, **mixer) for rate in [0.0, *rates[:-1]]
        )
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate else nn.Identity()
        self.residual = Residual()
        self.norm_f = RMSNorm(embed_dim, eps)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._classifier(num_classes)
        step = stride or patch_size
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": step, "module": f"layers.{i}"} for i in range(depth)
        ]
        self._rescale_branches(depth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, C)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to the normalised sequence (B, L, D), class tokens in their places."""
        return self._features(self.embed(x))

    def forward_tokens(self, tokens: Tensor) -> Tensor:
        """The sum of patches, class tokens and positions, (B, L, D), to logits (B, C)."""
        return self.forward_head(self._features(tokens))

    def _features(self, tokens: Tensor) -> Tensor:
        for stream in self._run(tokens):
            last = stream
        return self.norm_f(self.join(*last))

    def streams(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the blocks one by one: the branch and the stream that each returns, (B, L, D)."""
        return self._run(self.embed(x))

    def _run(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        residual = None
        blocks = cast("list[Block]", list(self.layers))
        for layer, plan in zip(blocks, plans_of(blocks), strict=True):
            if self.grad_checkpointing and self.training:
                hidden, residual = checkpoint(layer, hidden, residual, use_reentrant=False)
            elif plan is None:
                hidden, residual = layer(hidden, residual)
            else:
                hidden, residual = layer(hidden, residual, plan)
            yield hidden, residual

    def join(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Add the last branch to the stream, (B, L, D)."""
        return self.residual(residual, self.drop_path(hidden))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the sequence and classify: (B, L, D) to (B, C), or (B, D) with `pre_logits`."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to the sum of patches, class tokens and positions, (B, L, D)."""
        layout = self.layout_of(x)
        patches = self.patch_embed(x)
        special = self._special_tokens().expand(len(x), -1, -1)
        return self.pos_drop(self.token_sum(patches, special, self.position(layout), layout))

    def position(self, layout: TokenLayout) -> Tensor:
        """The position embedding of a sequence, (1, L, D)."""
        return resample_position(self.pos_embed, self.layout, layout)

    def pool(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, D): the class token, the mean of two, or the mean over the sequence."""
        if self.global_pool == "":
            return x
        if self.global_pool == "avg":
            return x.mean(dim=1)
        count = x.shape[1] - len(self.layout.special)
        return TokenLayout((count, 1), self.layout.class_token).special_of(x).mean(dim=1)

    def layout_of(self, x: Tensor) -> TokenLayout:
        """Where the tokens of an input stand; only its own size, unless `dynamic_img_size`."""
        size = (x.shape[-2], x.shape[-1])
        if size == self.img_size:
            return self.layout
        if not self.dynamic_img_size:
            raise InputError(
                f"the input is {size[0]} x {size[1]} pixels, this model takes "
                f"{self.img_size[0]} x {self.img_size[1]}: resize the input, or create the model "
                f"with img_size={size} or dynamic_img_size=True"
            )
        return TokenLayout(self.patch_embed.grid(*size), self.layout.class_token)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Change the input size in place, interpolating the position embedding.

        Args:
            img_size: Height and width in pixels, or one number for both.
        """
        self.img_size = _pair(img_size)
        layout = TokenLayout(self.patch_embed.grid(*self.img_size), self.layout.class_token)
        position = resample_position(self.pos_embed.detach(), self.layout, layout)
        self.pos_embed, self.layout = nn.Parameter(position.clone()), layout

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on top.

        Args:
            num_classes: Its size, 0 for none.
            global_pool: Another pooling, or None to keep it.
        """
        _check_pool(self.layout.class_token, global_pool or self.global_pool)
        self.num_classes = num_classes
        note_weights(self, None)
        if global_pool is not None:
            self.global_pool = global_pool
        like = self.pos_embed
        self.head = self._classifier(num_classes).to(like.device, like.dtype)

    def complete_cuts(self) -> tuple[str, ...]:
        """Modules whose outputs together carry all relevance, from input to output."""
        blocks = tuple(f"layers.{i}" for i in range(len(self.layers)))
        return ("token_sum", *blocks, "norm_f", "head")

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone, beside all one-dimensional ones."""
        names = {name for name, _ in self.named_parameters()}
        spared = ("A_log", "A_b_log", "pos_embed", *self._token_names)
        return {name for name in names if name.endswith(spared)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass of training."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth, as timm's layer decay expects.

        Args:
            coarse: Take all blocks as one group.
        """
        blocks = r"^layers" if coarse else r"^layers\.(\d+)"
        stem = r"^cls_token|^pos_embed|^patch_embed"
        return {"stem": stem, "blocks": [(blocks, None), (r"^norm_f", (99999,))]}

    def _add_tokens(self, class_token: ClassToken) -> None:
        self._token_names = _TOKEN_NAMES[class_token]
        for name in self._token_names:
            token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
            self.register_parameter(name, trunc_normal_(token, std=0.02))
        position = torch.zeros(1, self.layout.length, self.embed_dim)
        self.pos_embed = nn.Parameter(trunc_normal_(position, std=0.02))

    def _special_tokens(self) -> Tensor:
        """(1, S, D)."""
        tokens = [frozen(getattr(self, name)) for name in self._token_names]
        return torch.cat(tokens, dim=1) if tokens else self.pos_embed.detach()[:, :0]

    def _classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        head = Linear(self.embed_dim, num_classes, kind="head")
        trunc_normal_(head.weight, std=0.02)
        return head

    def _rescale_branches(self, depth: int) -> None:
        # GPT-2's rule for residual branches: the variance of the stream stays that of one block.
        with torch.no_grad():
            for name, parameter in self.layers.named_parameters():
                if name.endswith("out_proj.weight"):
                    parameter.div_(math.sqrt(depth))


_TOKEN_NAMES: dict[str, tuple[str, ...]] = {
    "middle": ("cls_token",),
    "head": ("cls_token",),
    "tail": ("cls_token",),
    "double": ("cls_token_head", "cls_token_tail"),
    "none": (),
}


def _check_pool(class_token: str, global_pool: str) -> None:
    if class_token not in _TOKEN_NAMES:
        raise InputError(f"class_token is {class_token!r}; give one of {', '.join(_TOKEN_NAMES)}")
    if global_pool not in ("token", "avg", ""):
        raise InputError(f"global_pool is {global_pool!r}; give 'token', 'avg', or '' for none")
    if global_pool == "token" and class_token == "none":  # noqa: S105
        raise InputError("without a class token there is none to pool: give global_pool='avg'")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


_WIDTHS = {"nano": (192, 12), "tiny": (192, 24), "small": (384, 24), "base": (768, 24)}
"""Width and depth of each size; nano is vimlrp's own, the others are the paper's."""

_CONFIGS: dict[str, dict[str, Any]] = {
    "test_vim": {"img_size": 64, "embed_dim": 32, "depth": 3, "d_state": 4},
    **{
        f"vim_{size}_patch16_224": {"embed_dim": width, "depth": depth}
        for size, (width, depth) in _WIDTHS.items()
    },
    **{
        f"vim_{size}_patch16_stride8_224": {
            "embed_dim": _WIDTHS[size][0],
            "depth": _WIDTHS[size][1],
            "stride": 8,
        }
        for size in ("tiny", "small")
    },
}


def _published(size: str, file: str) -> dict[str, Any]:
    return vision_cfg(
        hf_hub_id=f"hustvl/Vim-{size}-midclstok", hf_hub_filename=file, license="apache-2.0"
    )


default_cfgs = generate_default_cfgs(
    {
        "test_vim.untrained": vision_cfg(input_size=(3, 64, 64)),
        "vim_nano_patch16_224.imagenette": imagenette_cfg("vim_nano_patch16_224"),
        "vim_tiny_patch16_224.in1k": _published("tiny", "vim_t_midclstok_76p1acc.pth"),
        "vim_tiny_patch16_stride8_224.in1k": _published("tiny", "vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small_patch16_224.in1k": _published("small", "vim_s_midclstok_80p5acc.pth"),
        "vim_small_patch16_stride8_224.in1k": _published("small", "vim_s_midclstok_ft_81p6acc.pth"),
        "vim_base_patch16_224.in1k": _published("base", "vim_b_midclstok_81p9acc.pth"),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VisionMamba:
    config = _CONFIGS[variant]
    return build(VisionMamba, variant, pretrained, fit_state_dict, config, kwargs, features=3)


@register_model
def test_vim(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """A Vim of three narrow blocks for tests."""
    return _create("test_vim", pretrained, **kwargs)


@register_model
def vim_nano_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim of 12 blocks, whose Imagenette weights are in the package."""
    return _create("vim_nano_patch16_224", pretrained, **kwargs)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti."""
    return _create("vim_tiny_patch16_224", pretrained, **kwargs)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti with overlapping patches."""
    return _create("vim_tiny_patch16_stride8_224", pretrained, **kwargs)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S."""
    return _create("vim_small_patch16_224", pretrained, **kwargs)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S with overlapping patches."""
    return _create("vim_small_patch16_stride8_224", pretrained, **kwargs)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-B."""
    return _create("vim_base_patch16_224", pretrained, **kwargs)
