"""Watching layers by name: their activations, their relevance, and complete cuts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from vimlrp.errors import InputError
from vimlrp.tracing import Trace, active

__all__ = ["LayerRecord", "Streams", "alias", "watch_layers"]

Streams = dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class LayerRecord:
    """A layer's activation and its relevance, (B, ...) each.

    A layer that returns several streams, such as a block's branch and its residual stream, is
    recorded as their sum.
    """

    activation: Tensor
    relevance: Tensor

    @classmethod
    def of(cls, streams: Sequence[Tensor], gradients: Sequence[Tensor]) -> "LayerRecord":
        """Sum streams and the relevance that each carries.

        Raises:
            InputError: If they have different shapes, and so no sum.
        """
        shapes = {tuple(stream.shape) for stream in streams}
        if len(shapes) > 1:
            given = " and ".join(map(str, sorted(shapes)))
            raise InputError(
                f"a recorded layer returns tensors of shapes {given}, which have no sum: record a "
                "layer inside it"
            )
        activation = sum(s.detach() for s in streams)
        relevance = sum(s.detach() * g for s, g in zip(streams, gradients, strict=True))
        return cls(torch.as_tensor(activation), torch.as_tensor(relevance))


def alias(x: Tensor) -> Tensor:
    """The same values at a node of their own, whose gradient is that of later readers alone.

    A block's residual stream is read inside the block too; at the block's output only what comes
    after it counts.
    """
    return x.view_as(x)


@contextmanager
def watch_layers(model: nn.Module, names: Sequence[str], trace: Trace) -> Iterator[Streams]:
    """Catch the outputs of named modules during one explanation.

    Args:
        model: The model.
        names: Module names as `model.named_modules()` gives them.
        trace: The explanation; other passes through the model, in other threads, are ignored.

    Yields:
        A dictionary that fills while the model runs: the tensors that each module returned.

    Raises:
        InputError: If the model has no module of a name.
    """
    streams: Streams = {}
    modules = dict(model.named_modules())
    handles: list[RemovableHandle] = []
    for name in names:
        if name not in modules:
            raise InputError(_unknown(name, modules))

    def keeper(name: str) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
            if active() is not trace:
                return output
            output = tree_map_only(Tensor, alias, output)
            streams[name] = tuple(x for x in tree_leaves(output) if isinstance(x, Tensor))
            return output

        return keep

    try:
        handles.extend(modules[name].register_forward_hook(keeper(name)) for name in names)
        yield streams
    finally:
        for handle in handles:
            handle.remove()


def _unknown(name: str, modules: dict[str, nn.Module]) -> str:
    near = get_close_matches(name, modules, n=3, cutoff=0.4) or list(modules)[1:4]
    return f"the model has no layer {name!r}; layers are called, for example, {', '.join(near)}"
