"""Running a model on samples of an audit, with its logits and one layer's activation."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vimlrp.audit.channels import positions
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Sample
from vimlrp.inference import Inference
from vimlrp.inputs import preprocessing_of
from vimlrp.photos import Photo, read_photo
from vimlrp.wrapping import wrap

__all__ = ["Change", "Watched", "stream_sum"]

Change = Callable[[Photo], Photo]
"""What may be done to a photo before the model's preprocessing."""


class Watched:
    """A model, one of whose layers is looked at; it is left as it is.

    Args:
        model: A classifier that vimlrp explains.
        layer: Name of a layer in it, or in its wrapped counterpart where that has others.
        batch_size: Pictures to run at a time.

    Raises:
        InputError: If there is no such layer.
    """

    def __init__(self, model: nn.Module, layer: str, *, batch_size: int = 64) -> None:
        self.model = wrap(model)
        self.layer = layer
        if layer not in dict(self.model.named_modules()):
            raise InputError(
                f"the model has no layer {layer!r}: this evidence was gathered with another model"
            )
        self.inference = Inference(self.model, batch_size=batch_size)
        self.preprocessing = preprocessing_of(self.model)

    def load(self, samples: Sequence[Sample], change: Change | None = None) -> Tensor:
        """Samples as the model takes them, (n, 3, H, W).

        Args:
            samples: At least one.
            change: What to do to each photo first.

        Raises:
            InputError: If a photo cannot be read.
        """
        photos = (read_photo(sample.path, sample.name) for sample in samples)
        prepared = [self.preprocessing(change(p) if change else p)[0] for p in photos]
        if not prepared:
            return torch.empty(0, 3, *self.preprocessing.size, device=self.inference.device)
        return torch.stack(prepared).to(self.inference.device, self.inference.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """(n, C), float64 on the CPU."""
        return self.inference(x).double().cpu()

    def activations(self, x: Tensor) -> Iterator[Tensor]:
        """The layer's activation as positions, (b, P, K) float32 on the CPU, a batch at a time.

        Args:
            x: (n, 3, H, W).

        Raises:
            InputError: If the model does not run the layer by itself.
        """
        for _, activation in self.run(x):
            yield positions(self.model, self.layer, activation).float().cpu()

    def run(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (b, C), and what the layer returned, (b, ...) in its own layout, by batches.

        Args:
            x: (n, 3, H, W).

        Raises:
            InputError: As for `activations`.
        """
        for piece in x.split(self.inference.batch_size):
            kept: list[Tensor] = []
            module = self.model.get_submodule(self.layer)
            handle = module.register_forward_hook(partial(_keep, kept))
            try:
                logits = self.inference(piece)
            finally:
                handle.remove()
            if not kept:
                raise InputError(
                    f"the model does not run {self.layer} by itself: choose a whole block, or set "
                    "VIMLRP_FUSED=0"
                )
            yield logits, kept[-1]

    def pooled(self, x: Tensor) -> Tensor:
        """The greatest activation of each channel over positions, (n, K), as `Evidence` has it."""
        return torch.cat([part.amax(1) for part in self.activations(x)])


def _keep(kept: list[Tensor], _module: nn.Module, _args: Any, output: Any) -> None:
    kept.append(stream_sum(output))


def stream_sum(output: Any) -> Tensor:
    """What a layer returned, the sum of its streams where it returns several."""
    streams = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return torch.as_tensor(sum(stream.detach() for stream in streams))
