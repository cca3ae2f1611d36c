"""Replay a model as one CUDA graph: the steps of a small model are bound by launching kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["graphed_for_inference", "graphed_for_training"]

Forward = Callable[[Tensor], Tensor]


def graphed_for_training(model: nn.Module, like: Tensor) -> Forward:
    """Forward and backward of a model in training mode as graphs, for inputs of one shape.

    The model itself is left as it was. Its random numbers come from the default generator, whose
    seed may be set between two calls.

    Args:
        model: On a GPU, in training mode.
        like: An input of the shape of all inputs.
    """
    graphed: Any = torch.cuda.make_graphed_callables
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        graphed(model, (like.clone(),), allow_unused_input=True)
    forward: Forward = model.__dict__.pop("forward")
    return forward


def graphed_for_inference(model: nn.Module, like: Tensor) -> Forward:
    """The forward of a model without gradients as a graph, for inputs of one shape.

    Args:
        model: On a GPU.
        like: An input of the shape of all inputs.

    Returns:
        The function; its result is overwritten by its next call.
    """
    static, side = like.clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    autocast = torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
    with torch.no_grad(), autocast:
        with torch.cuda.stream(side):
            for _ in range(3):
                model(static)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            out = model(static)

    def forward(x: Tensor) -> Tensor:
        static.copy_(x)
        graph.replay()
        return out

    return forward
