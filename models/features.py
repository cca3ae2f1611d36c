"""Features of intermediate blocks, as timm asks a backbone of one resolution for them."""

from collections.abc import Iterator, Sequence

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vimlrp.errors import InputError
from vimlrp.tokens import TokenLayout

__all__ = ["TokenFeatures"]

Features = list[Tensor] | list[tuple[Tensor, Tensor]]


class TokenFeatures(nn.Module):
    """A backbone whose blocks all see one sequence of tokens."""

    layers: nn.ModuleList
    norm_f: nn.Module

    def streams(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the blocks one by one: the branch and the stream that each returns, (B, L, D)."""
        raise NotImplementedError

    def join(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Add a branch to the stream, (B, L, D)."""
        raise NotImplementedError

    def layout_of(self, x: Tensor) -> TokenLayout:
        """Where the tokens of an input stand."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on top."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Features | tuple[Tensor, Features]:
        """The sequence after each block, its branch added, as timm's contract has it.

        Args:
            x: (B, 3, H, W).
            indices: Blocks: the last so many, or a list; all by default.
            return_prefix_tokens: Give every map with the class tokens, (B, S, D), wherever in the
                sequence they stand.
            norm: Normalise every sequence as the classifier's is.
            stop_early: Leave out the blocks after the last one wanted.
            output_fmt: "NCHW" for maps (B, D, h, w), "NLC" for patches (B, M, D).
            intermediates_only: Return the features alone.

        Returns:
            The features, after the output of `forward_features` unless `intermediates_only`; with
            `stop_early` that is the normalised sequence of the last block run.

        Raises:
            InputError: If `output_fmt` is neither.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt is {output_fmt!r}; give 'NCHW' or 'NLC'")
        wanted, last = feature_take_indices(len(self.layers), indices)
        sequences = []
        for i, stream in enumerate(self.streams(x)):
            x_i = self.join(*stream)
            if i in wanted:
                sequences.append(self.norm_f(x_i) if norm else x_i)
            if stop_early and i == last:
                break
        layout = self.layout_of(x)
        features = _features(sequences, layout, output_fmt == "NCHW", return_prefix_tokens)
        return features if intermediates_only else (self.norm_f(x_i), features)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what `forward_intermediates` does not need for some blocks.

        Args:
            indices: As there.
            prune_norm: Drop the last normalisation.
            prune_head: Drop the classifier.

        Returns:
            The indices, counted from the first block.
        """
        wanted, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        if prune_norm:
            self.norm_f = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(wanted)


def _features(
    sequences: Sequence[Tensor], layout: TokenLayout, maps: bool, special: bool
) -> Features:
    patches = [layout.patches_of(x) for x in sequences]
    if maps:
        patches = [x.transpose(1, 2).unflatten(2, layout.grid) for x in patches]
    if special and layout.special:
        tokens = [layout.special_of(x) for x in sequences]
        return list(zip(patches, tokens, strict=True))
    return patches
