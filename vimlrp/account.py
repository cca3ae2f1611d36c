"""The account of an explanation: where the target's relevance went."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vimlrp.tracing import Absorption

__all__ = ["Account"]


@dataclass(frozen=True)
class Account:
    """Shares of the target value, per sample.

    Args:
        target: The value explained, (B,).
        parts: What each part received, (B,) each: "pixels", "class token", "position embedding",
            "bias: ..." for each kind of site, "stabiliser".
    """

    target: Tensor
    parts: Mapping[str, Tensor]

    @classmethod
    def of(cls, target: Tensor, pixels: Tensor, absorptions: Iterable[Absorption]) -> "Account":
        """Add up what a pass absorbed, by kind.

        Args:
            target: The value explained, (B,).
            pixels: The sum over the pixels, (B,).
            absorptions: What left the stream anywhere.
        """
        shares: dict[str, list[Tensor]] = {}
        for absorption in absorptions:
            # Windows of a map may have been run as samples of their own.
            shares.setdefault(absorption.kind, []).append(absorption.share.view(len(target), -1))
        # One sum a kind: a small sum on a GPU costs a launch, whatever its size.
        parts = {"pixels": pixels, **{kind: torch.cat(s, 1).sum(1) for kind, s in shares.items()}}
        first = [kind for kind in ("pixels", "class token", "position embedding") if kind in parts]
        order = first + sorted(set(parts) - set(first))
        return cls(target.detach(), {kind: parts[kind] for kind in order})

    @property
    def residue(self) -> Tensor:
        """What no part accounts for, (B,): rounding, or a composite that does not conserve."""
        return self.target - sum(self.parts.values(), torch.zeros_like(self.target))

    def rows(self, sample: int) -> list[tuple[str, float, float]]:
        """Name, value and share of the target for each part of one sample's account.

        Args:
            sample: Its index in the batch.
        """
        target = float(self.target[sample])
        values = {kind: float(value[sample]) for kind, value in self.parts.items()}
        values["residue"] = float(self.residue[sample])
        scale = target or float("nan")
        return [(kind, value, value / scale) for kind, value in values.items()]

    @classmethod
    def cat(cls, accounts: list["Account"]) -> "Account":
        """Join the accounts of several batches; a part that one lacks is 0 there."""
        kinds = dict.fromkeys(kind for account in accounts for kind in account.parts)
        parts = {
            kind: torch.cat([a.parts.get(kind, torch.zeros_like(a.target)) for a in accounts])
            for kind in kinds
        }
        return cls(torch.cat([account.target for account in accounts]), parts)

    def __str__(self) -> str:
        lines = []
        for sample in range(len(self.target)):
            lines.append(f"target {float(self.target[sample]):+.4f}")
            lines += [f"  {line}" for line in self.lines(sample)]
        return "\n".join(lines)

    def lines(self, sample: int) -> list[str]:
        """The rows of one sample's account as aligned text.

        Args:
            sample: Its index in the batch.
        """
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        return [
            f"{part:<24} {round(value, 4) + 0.0:+10.4f} {100 * (round(share, 3) + 0.0):+8.1f} %"
            for part, value, share in self.rows(sample)
        ]
