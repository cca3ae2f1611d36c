"""The result of an explanation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimlrp import heatmaps, storage
from vimlrp.account import Account
from vimlrp.errors import InputError
from vimlrp.inputs import Source
from vimlrp.layers import LayerRecord
from vimlrp.panels import panel

__all__ = ["Relevance"]

MapKind = Literal["pixels", "patches"]
_SMOOTHING: dict[MapKind, float] = {"pixels": heatmaps.PIXEL_SMOOTHING, "patches": 0.0}


@dataclass(frozen=True, eq=False)
class Relevance:
    """Signed relevance of B images for their targets, with the account of where it went.

    The maps are float32, or float64 for a model in float64. Positive values speak for the target,
    negative ones against it.

    Attributes:
        pixels: (B, H, W), propagated through the patch embedding itself, summed over colours.
        patches: (B, h, w), the share of each patch's content, without position embedding and
            bias; its sum is that of `pixels`, but for what a stabiliser of their rule absorbs.
        tokens: (B, L), read where patches, class tokens and position embedding are summed, in
            sequence order, as the official MambaLRP reads it; None where a model has no tokens.
        logits: (B, C).
        target: (B,) class indices, or None where a function of the logits or a direction in a
            layer was explained.
        account: Where the target's relevance went, per sample.
        recorded: Activation and relevance of the layers asked for.
        contrast: (B,) indices of the classes subtracted, or None.
        model: What was explained, such as "vim_tiny_patch16_224".
        composite: The rules, as text.
        class_names: Of the model, where known.
        sources: Where the samples came from; empty after loading.
    """

    pixels: Tensor
    patches: Tensor
    tokens: Tensor | None
    logits: Tensor
    target: Tensor | None
    account: Account
    recorded: Mapping[str, LayerRecord] = field(default_factory=dict)
    contrast: Tensor | None = None
    model: str = ""
    composite: str = ""
    class_names: tuple[str, ...] | None = None
    sources: tuple[Source, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | slice) -> "Relevance":
        part = _as_slice(index, len(self))
        return self._map(lambda x: x[part], sources=self.sources[part])

    def to(self, device: torch.device | str) -> "Relevance":
        """Move every tensor to a device."""
        return self._map(lambda x: x.to(device), tuple(s.to(device) for s in self.sources))

    @classmethod
    def cat(cls, parts: Sequence["Relevance"]) -> "Relevance":
        """Join the relevances of several batches of one model."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return cls(
            pixels=torch.cat([p.pixels for p in parts]),
            patches=torch.cat([p.patches for p in parts]),
            tokens=_cat([p.tokens for p in parts]),
            logits=torch.cat([p.logits for p in parts]),
            target=_cat([p.target for p in parts]),
            contrast=_cat([p.contrast for p in parts]),
            account=Account.cat([p.account for p in parts]),
            recorded={
                name: LayerRecord(
                    torch.cat([p.recorded[name].activation for p in parts]),
                    torch.cat([p.recorded[name].relevance for p in parts]),
                )
                for name in first.recorded
            },
            model=first.model,
            composite=first.composite,
            class_names=first.class_names,
            sources=tuple(source for p in parts for source in p.sources),
        )

    def probabilities(self) -> Tensor:
        """Softmax of the logits, (B, C)."""
        return self.logits.to(self.pixels.dtype).softmax(dim=1)

    def name_of(self, index: int) -> str:
        """The name of a class, or its index where the model knows no names."""
        return str(index) if self.class_names is None else self.class_names[index]

    def question(self, i: int) -> str:
        """What was explained of a sample: a class, or one class rather than another.

        Args:
            i: Index of the sample.
        """
        if self.target is None:
            return "a function of the model"
        target = self.name_of(int(self.target[i]))
        if self.contrast is None:
            return target
        return f"{target} rather than {self.name_of(int(self.contrast[i]))}"

    def top(self, count: int = 5) -> list[list[tuple[int, str, float]]]:
        """The most probable classes of each sample: index, name and probability.

        Args:
            count: How many.
        """
        probability, index = self.probabilities().topk(min(count, self.logits.shape[1]), dim=1)
        return [
            [(i, self.name_of(i), p) for i, p in zip(row_i, row_p, strict=True)]
            for row_i, row_p in zip(index.tolist(), probability.tolist(), strict=True)
        ]

    def heatmap(
        self,
        of: MapKind = "pixels",
        *,
        shared_scale: bool = False,
        smoothing: float | None = None,
    ) -> list[NDArray[np.uint8]]:
        """Maps alone, one picture (h, w, 3) per sample: red for the target, blue against it.

        Args:
            of: "pixels" or "patches".
            shared_scale: One colour scale for the whole batch instead of one per sample.
            smoothing: Sigma, in cells of the map, of a blur for display; by default that of
                `overlay`.
        """
        maps = self._shown(of, smoothing)
        limit = heatmaps.scale_of(maps) if shared_scale else None
        return [heatmaps.colourise(one, limit) for one in maps]

    def overlay(
        self,
        of: MapKind = "pixels",
        *,
        shared_scale: bool = False,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
        pictures: Sequence[NDArray[np.uint8]] | None = None,
    ) -> list[NDArray[np.uint8]]:
        """Maps over the original pictures, one picture (H, W, 3) per sample at the photo's size.

        What the model's crop removed is dimmed and hatched: it was not seen.

        Args:
            of: "pixels" or "patches".
            shared_scale: One colour scale for the whole batch instead of one per sample.
            interpolation: Between cells of the map.
            pictures: Pictures to draw on instead of the originals, at the originals' sizes.
        """
        if not self.sources:
            raise InputError("this relevance was loaded from disk and holds no pictures to draw on")
        maps = self._shown(of)
        limit = heatmaps.scale_of(maps) if shared_scale else None
        drawn = pictures if pictures is not None else [s.picture() for s in self.sources]
        if len(drawn) != len(self):
            raise InputError(f"{len(drawn)} pictures were given for {len(self)} samples")
        return [
            heatmaps.overlay(
                picture,
                values,
                source.geometry,
                limit=limit,
                interpolation=interpolation,
                smoothing=0.0,
            )
            for picture, values, source in zip(drawn, maps, self.sources, strict=True)
        ]

    def panel(
        self, overlays: Mapping[MapKind, Sequence[NDArray[np.uint8]]] | None = None
    ) -> list[NDArray[np.uint8]]:
        """Photo, pixels and patches side by side, one picture per sample.

        The captions name the class explained and the |relevance| in full colour.

        Args:
            overlays: What `overlay` drew of pixels and of patches, if that is at hand.
        """
        if overlays is None:
            overlays = {of: self.overlay(of) for of in _SMOOTHING}
        drawn = [[source.picture() for source in self.sources]]
        captions = [[self._title(i) for i in range(len(self))]]
        for of, pictures in overlays.items():
            drawn.append(list(pictures))
            limits = map(heatmaps.scale_of, self._shown(of))
            captions.append([f"{of}\nfull colour at {limit:.3g}" for limit in limits])
        return [
            panel(row, texts)
            for row, texts in zip(
                zip(*drawn, strict=True), zip(*captions, strict=True), strict=True
            )
        ]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write arrays, pictures and a manifest; see `vimlrp.storage.save`."""
        return storage.save(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> "Relevance":
        """Read what `save` wrote; see `vimlrp.storage.load`."""
        return cls(**storage.load(folder))

    def _shown(self, of: MapKind, smoothing: float | None = None) -> NDArray[np.float32]:
        """The maps as they are drawn: smoothed, by default as suits their kind."""
        if of not in _SMOOTHING:
            raise InputError(f"there are maps of 'pixels' and of 'patches', not of {of!r}")
        maps: Tensor = getattr(self, of)
        values = np.asarray(maps.detach().float().cpu().numpy())
        return heatmaps.smooth(values, _SMOOTHING[of] if smoothing is None else smoothing)

    def _title(self, i: int) -> str:
        name = self.sources[i].name
        if self.target is None:
            return f"{name}\nvalue {float(self.account.target[i]):+.3g}"
        if self.contrast is not None:
            return f"{name}\n{self.question(i)}"
        target = int(self.target[i])
        probability = float(self.probabilities()[i, target])
        return f"{name}\n{self.name_of(target)} {probability:.1%}"

    def _map(self, change: Any, sources: tuple[Source, ...]) -> "Relevance":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("pixels", "patches", "tokens", "logits", "target", "contrast"):
            values[name] = None if values[name] is None else change(values[name])
        parts = {kind: change(value) for kind, value in self.account.parts.items()}
        values["account"] = Account(change(self.account.target), parts)
        values["recorded"] = {
            name: LayerRecord(change(r.activation), change(r.relevance))
            for name, r in self.recorded.items()
        }
        return Relevance(**{**values, "sources": sources})

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.pixels.shape[1:]))
        rules = self.composite.partition("\n")[0]
        return f"Relevance({len(self)} of {size} pixels, {self.model}, {rules})"


def _as_slice(index: int | slice, length: int) -> slice:
    if isinstance(index, slice):
        return index
    place = range(length)[index]
    return slice(place, place + 1)


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
