"""How the tensors of two models lie to each other, in words."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """How the tensors of a file, or of another model, lie to those of a model.

    Args:
        missing: In the model alone.
        unexpected: In the file alone.
        reshaped: In both, with the shape in the file and in the model.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: dict[str, tuple[torch.Size, torch.Size]]

    @classmethod
    def of(cls, state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> "Comparison":
        """Compare names and shapes."""
        both = [key for key in model if key in state]
        shapes = {key: (state[key].shape, model[key].shape) for key in both}
        return cls(
            tuple(key for key in model if key not in state),
            tuple(key for key in state if key not in model),
            {key: pair for key, pair in shapes.items() if pair[0] != pair[1]},
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def only(self, *names: str) -> bool:
        """Whether nothing but the named tensors differs."""
        return set(names).issuperset((*self.missing, *self.unexpected, *self.reshaped))

    def lines(self, theirs: str = "the file", most: int = 4) -> list[str]:
        """Count the differences, and name the first of each kind.

        Args:
            theirs: What the model is compared with.
            most: How many of a kind to name.
        """
        reshaped = [
            f"{key}: {tuple(other)} in {theirs}, {tuple(ours)} in the model"
            for key, (other, ours) in self.reshaped.items()
        ]
        more = [f"and {len(reshaped) - most} more"] if len(reshaped) > most else []
        groups = {
            f"{theirs} lacks": _grouped(self.missing, most),
            "the model has no": _grouped(self.unexpected, most),
            "of another shape": [*reshaped[:most], *more],
        }
        counts = (len(self.missing), len(self.unexpected), len(reshaped))
        return [
            f"  {title} ({count} tensors): {'; '.join(entries)}"
            for (title, entries), count in zip(groups.items(), counts, strict=True)
            if entries
        ]


def _grouped(keys: Iterable[str], most: int) -> list[str]:
    """Names that differ in a number alone become one, with their count."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", key) for key in keys)
    shown = [f"{name} x{n}" if n > 1 else name for name, n in counts.most_common(most)]
    rest = sum(counts.values()) - sum(n for _, n in counts.most_common(most))
    return [*shown, f"and {rest} more"] if rest else shown
