"""Explanations replayed as CUDA graphs.

An explanation launches hundreds of kernels, and for a small batch Python takes longer to launch
them than the GPU takes to run them. A pass that was asked for before, on the same model in the same
state and with a batch of the same shape, is recorded once and then replayed in one launch. A replay
reads the weights as they are; whatever else could change the pass is compared before.
"""

import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.composites import Composite
from vimlrp.engine import Request, Result, check_finite, explained, explaining, propagate
from vimlrp.errors import InputError
from vimlrp.model_state import ModelState
from vimlrp.targets import Indices, indices

__all__ = ["VARIABLE", "Replays"]

VARIABLE = "VIMLRP_GRAPHS"
"""0 turns replays off, 1 or auto, the default, leaves them on."""

# Graphs of one explainer, and the share of a GPU's memory that they may hold together.
_MOST, _SHARE = 4, 1 / 8

_log = logging.getLogger(__name__)


@dataclass
class _Graph:
    """A recorded pass: its graph, the model as it was, and where inputs and results lie."""

    graph: Any
    state: ModelState
    x: Tensor
    target: Tensor | None
    contrast: Tensor | None
    finite: Tensor
    result: Result

    def replay(self, x: Tensor, goals: "_Goals") -> tuple[Result, Tensor]:
        """Run it on other inputs.

        Returns:
            Copies of the results, which the next replay leaves alone, and whether the logits are
            finite.
        """
        self.x.copy_(x)
        for place, given in zip((self.target, self.contrast), goals, strict=True):
            if place is not None and given is not None:
                place.copy_(given)
        self.graph.replay()
        return self.result.clone(), self.finite.clone()


_Goals = tuple[Tensor | None, Tensor | None]


class Replays:
    """The graphs of one explainer, the least recently used one dropped first.

    Args:
        enabled: Whether to replay at all; None leaves it to the environment variable.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = _wish() if enabled is None else enabled
        self._lock = Lock()
        self._graphs: OrderedDict[object, _Graph] = OrderedDict()
        self._seen: OrderedDict[object, ModelState] = OrderedDict()
        self._unfit: set[object] = set()
        self._pools: dict[torch.device, Any] = {}
        self._done: dict[torch.device, torch.cuda.Event] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self, model: nn.Module, x: Tensor, composite: Composite, request: Request
    ) -> Result:
        """`propagate`, replayed where that is possible; raises what it raises."""
        key = _key(x, composite, request) if self.enabled else None
        if key is None or key in self._unfit:
            return propagate(model, x, composite, request)
        state: ModelState | None = None
        with self._lock, torch.cuda.device(x.device), torch.inference_mode(False):
            found = self._replayed(key, model, x, request)
            if found is None:
                state = ModelState.of(model)
                if state is not None and state.same(self._seen.get(key)):
                    self._record(key, state, model, x, composite, request)
                    found = self._replayed(key, model, x, request)
        if found is None:
            result = propagate(model, x, composite, request)
            self._note(key, state)
            return result
        result, finite = found
        check_finite(finite)
        return result

    def _note(self, key: object, state: ModelState | None) -> None:
        """Remember an ordinary pass: the next one like it is recorded."""
        if state is None:  # somebody listens, whom a replay would not call
            return
        with self._lock:
            self._seen[key] = state
            self._seen.move_to_end(key)
            while len(self._seen) > _MOST:
                self._seen.popitem(last=False)

    def _replayed(
        self, key: object, model: nn.Module, x: Tensor, request: Request
    ) -> tuple[Result, Tensor] | None:
        graph = self._graphs.get(key)
        # A graph whose weights have moved may read memory that is no longer theirs.
        if graph is None or not graph.state.is_in_place():
            self._graphs.pop(key, None)
            return None
        goals = _goals(request, x, graph.result.logits.shape[1])
        stream = torch.cuda.current_stream()
        if x.device in self._done:  # the graphs of a device share memory
            stream.wait_event(self._done[x.device])
        found = graph.replay(x, goals)
        self._done.setdefault(x.device, torch.cuda.Event()).record(stream)
        # Compared while the GPU is at work: what it finds counts if the model is as it was.
        if not graph.state.same(ModelState.of(model)):
            del self._graphs[key]
            return None
        self._graphs.move_to_end(key)
        return found

    def _record(
        self,
        key: object,
        state: ModelState,
        model: nn.Module,
        x: Tensor,
        composite: Composite,
        request: Request,
    ) -> None:
        before = torch.cuda.memory_reserved(x.device)
        try:
            graph = _record(state, model, x, composite, request, self._pools.get(x.device))
        except (RuntimeError, NotImplementedError) as error:
            # What cannot be recorded runs as ever, and any fault of its own shows there.
            _log.debug("a pass could not be recorded as a CUDA graph: %s", error)
            self._unfit.add(key)
            return
        self._pools[x.device] = graph.graph.pool()
        grown = torch.cuda.memory_reserved(x.device) - before
        if grown > _SHARE * torch.cuda.get_device_properties(x.device).total_memory:
            self._unfit.add(key)
            return
        self._graphs[key] = graph
        while len(self._graphs) > _MOST:
            self._graphs.popitem(last=False)


def _goals(request: Request, x: Tensor, classes: int) -> _Goals:
    """Indices of the target and the contrast, (B,) each, or None."""
    place = (request.names, len(x), classes, x.device)
    return indices(request.target, *place), indices(request.contrast, *place)


def _record(
    state: ModelState,
    model: nn.Module,
    x: Tensor,
    composite: Composite,
    request: Request,
    pool: Any,
) -> _Graph:
    x = x.detach().clone()
    # Class 0 to begin with: every replay writes its own.
    target, contrast = (
        None if goal is None else torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for goal in (request.target, request.contrast)
    )
    request = Request(
        target=None if target is None else Indices(target),
        contrast=None if contrast is None else Indices(contrast),
    )
    finite: list[Tensor] = []
    graph = torch.cuda.CUDAGraph()
    # PyTorch's own stream for captures is of the GPU that first captured anything.
    stream = torch.cuda.Stream(x.device)
    with (
        explaining(model, x, composite) as trace,
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        result = explained(
            model, x, trace, request, lambda logits: finite.append(logits.isfinite().all())
        )
    return _Graph(graph, state, x, target, contrast, finite[0], result)


def _wish() -> bool:
    wish = os.environ.get(VARIABLE, "auto")
    if wish not in ("auto", "0", "1"):
        raise InputError(f"{VARIABLE} is {wish!r}; give auto, 0 or 1")
    return wish != "0"


def _key(x: Tensor, composite: Composite, request: Request) -> object | None:
    """What a graph is kept by, or None where a pass has to run as it is."""
    free = request.start is not None or request.record or callable(request.target)
    if not x.is_cuda or free or callable(request.contrast) or _is_special():
        return None
    shape = (x.shape, x.stride(), x.dtype, x.device)
    goal = (request.target is None, request.contrast is None)
    return (shape, goal, composite.base, tuple(composite.changes.items()), _circumstances())


def _is_special() -> bool:
    """Whether a pass here depends on more than a graph is compared by."""
    return (
        torch.is_autocast_enabled("cuda")
        or torch.cuda.is_current_stream_capturing()
        or bool(nn.modules.module._global_forward_hooks)
        or bool(nn.modules.module._global_forward_pre_hooks)
    )


def _circumstances() -> tuple[object, ...]:
    """Global settings by which PyTorch and vimlrp choose their kernels."""
    backends: Any = torch.backends  # whose types leave out the precisions
    return (
        backends.fp32_precision,
        backends.cuda.matmul.fp32_precision,
        backends.cudnn.conv.fp32_precision,
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        *(os.environ.get(f"VIMLRP_{name}") for name in ("BACKEND", "FUSED")),
    )
