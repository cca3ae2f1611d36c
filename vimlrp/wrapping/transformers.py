"""Counterparts of attention, and of where the tokens of a transformer begin."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vimlrp.sites import Attention, Site, TokenSum
from vimlrp.tokens import TokenLayout
from vimlrp.tracing import active
from vimlrp.wrapping.cloning import Counterpart, Table

__all__ = ["TABLE"]


@dataclass(frozen=True)
class _PrefixLayout(TokenLayout):
    """Patches after a number of tokens of their own.

    Args:
        grid: Rows and columns of patches.
        prefix: Class, distillation and register tokens together.
    """

    prefix: int = 0

    @cached_property
    def special(self) -> tuple[int, ...]:
        """The first places."""
        return tuple(range(self.prefix))


class _PositionSum(Site):
    """A position embedding added inside the network."""

    kind = "residual"

    def plain(self, x: Tensor, position: Tensor) -> Tensor:
        """Add, and note the share of the embedding."""
        trace = active()
        if trace is None:
            return x + position
        out = x + position.detach()
        trace.absorb("position embedding", out, position)
        return out


class _VisionTransformer(Counterpart):
    """Where patches, class tokens and position embedding are summed."""

    cls_token: Tensor | None
    pos_embed: Tensor | None
    patch_embed: Any
    pos_drop: nn.Module
    no_embed_class: bool
    dynamic_img_size: bool
    num_prefix_tokens: int

    def settle(self) -> None:
        """Add the sum."""
        self.token_sum = TokenSum()

    def _pos_embed(self, x: Tensor) -> Any:
        grid = tuple(x.shape[1:3]) if x.dim() == 4 else self.patch_embed.grid_size
        position = self._position(grid)
        patches = x.flatten(1, -2)  # (B, M, D)
        special = self._special(patches)
        layout = _PrefixLayout((grid[0], grid[1]), prefix=special.shape[1])
        return self.pos_drop(self.token_sum(patches, special, position, layout))

    def _special(self, patches: Tensor) -> Tensor:
        """Class, distillation and register tokens, (B, S, D)."""
        tokens = [getattr(self, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        rows = [token.expand(len(patches), -1, -1) for token in tokens if token is not None]
        return torch.cat([*rows, patches.new_empty(len(patches), 0, patches.shape[-1])], dim=1)

    def _position(self, grid: tuple[int, ...]) -> Tensor | None:
        """The embedding of every token, (1, L, D), zeros for tokens that have none."""
        position = self.pos_embed
        if position is None:
            return None
        own = 0 if self.no_embed_class else self.num_prefix_tokens
        if self.dynamic_img_size:
            old = self.patch_embed.grid_size
            position = resample_abs_pos_embed(position, list(grid), old, num_prefix_tokens=own)
        missing = position.new_zeros(1, self.num_prefix_tokens - own, position.shape[-1])
        return torch.cat([missing, position], dim=1)


class _SelfAttention(Counterpart):
    """Attention among all tokens."""

    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Module | None
    proj: nn.Module
    proj_drop: nn.Module
    num_heads: int

    def settle(self) -> None:
        """Add the attention."""
        self.attend = Attention()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Any:
        """(B, L, D) to the same."""
        if is_causal or getattr(self, "gate", None) is not None:
            return super().forward(x, attn_mask, is_causal)  # for the guard to refuse by name
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.attend(self.q_norm(q), self.k_norm(k), v, attn_mask)
        out = self.norm(out.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(out))


class _WindowAttention(Counterpart):
    """Attention within the windows of a map, with a bias for relative positions (Liu et al. 2021).

    https://arxiv.org/abs/2103.14030.
    """

    qkv: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    num_heads: int
    _get_rel_pos_bias: Any

    def settle(self) -> None:
        """Add the attention."""
        self.attend = Attention()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        """Windows (B W, L, D) to the same; the mask is one for every window of a map, (W, L, L)."""
        bias = self._get_rel_pos_bias()  # (1, heads, L, L)
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(len(x) // len(mask), 1, 1, 1)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.attend(q, k, v, bias)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class _AttentionPool(Counterpart):
    """Pooling by attention of learnt queries to all tokens."""

    latent: Tensor
    pos_embed: Tensor | None
    q: nn.Module
    kv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    norm: nn.Module
    mlp: nn.Module | None
    num_heads: int
    pool: str

    def settle(self) -> None:
        """Add the attention, and the sum with positions."""
        self.attend, self.position_sum = Attention(), _PositionSum()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Any:
        """(B, L, D) to (B, D)."""
        if self.pos_embed is not None:
            x = self.position_sum(x, self.pos_embed.unsqueeze(0).to(x.dtype))
        q = self.q(self.latent.expand(len(x), -1, -1))
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = self.attend(self.q_norm(q), self.k_norm(k), v, attn_mask)
        out = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        out = out if self.mlp is None else out + self.mlp(self.norm(out))
        return {"token": lambda: out[:, 0], "avg": lambda: out.mean(1)}.get(
            self.pool, lambda: out
        )()


TABLE: Table = {
    "timm.models.vision_transformer.VisionTransformer": _VisionTransformer,
    "timm.models.deit.VisionTransformerDistilled": _VisionTransformer,
    "timm.layers.attention.Attention": _SelfAttention,
    "timm.layers.attention_pool.AttentionPoolLatent": _AttentionPool,
    "timm.models.swin_transformer.WindowAttention": _WindowAttention,
}
