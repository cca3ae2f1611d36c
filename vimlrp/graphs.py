"""Explanations replayed as CUDA graphs.

An explanation launches hundreds of kernels, and for a small batch Python takes longer to launch
them than the GPU takes to run them. A pass that was asked for before, on the same model in the same
state and with a batch of the same shape, is recorded once and then replayed in one launch. A replay
reads the weights as they are; whatever else could change the pass is compared before.
"""

import logging
import operator
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
from vimlrp.targets import Indices, indices

__all__ = ["VARIABLE", "Replays"]

VARIABLE = "VIMLRP_GRAPHS"
"""0 turns replays off, 1 or auto, the default, leaves them on."""

# Graphs of one explainer, and the share of a GPU's memory that they may hold together.
_MOST, _SHARE = 4, 1 / 8
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_log = logging.getLogger(__name__)

State = tuple[list[object], list[int]]


@dataclass
class _Graph:
    """A recorded pass: its graph, where its inputs go and where its results lie."""

    graph: Any
    x: Tensor
    target: Tensor | None
    contrast: Tensor | None
    finite: Tensor
    result: Result

    def replay(self, x: Tensor, target: Tensor | None, contrast: Tensor | None) -> Result:
        """Run it on other inputs; the results are copies, which the next replay leaves alone."""
        self.x.copy_(x)
        for place, given in ((self.target, target), (self.contrast, contrast)):
            if place is not None and given is not None:
                place.copy_(given)
        self.graph.replay()
        return self.result.clone()


class Replays:
    """The graphs of one explainer, the least recently used one dropped first.

    Args:
        enabled: Whether to replay at all; None leaves it to the environment variable.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = _wish() if enabled is None else enabled
        self._lock = Lock()
        self._graphs: OrderedDict[object, _Graph] = OrderedDict()
        self._seen: OrderedDict[object, tuple[State, int]] = OrderedDict()
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
        state = _state(model)
        if state is None:  # somebody listens, whom a replay would not call
            return propagate(model, x, composite, request)
        result = self._replayed(key, state, model, x, composite, request)
        if result is None:
            result = propagate(model, x, composite, request)
            self._note(key, state, result.logits.shape[1])
        return result

    def _note(self, key: object, state: State, classes: int) -> None:
        """Remember an ordinary pass: the next one like it is recorded."""
        with self._lock:
            self._seen[key] = state, classes
            self._seen.move_to_end(key)
            while len(self._seen) > _MOST:
                self._seen.popitem(last=False)

    def _replayed(
        self,
        key: object,
        state: State,
        model: nn.Module,
        x: Tensor,
        composite: Composite,
        request: Request,
    ) -> Result | None:
        with self._lock, torch.cuda.device(x.device), torch.inference_mode(False):
            seen, classes = self._seen.get(key, (([], []), 0))
            if not _same(seen, state):
                self._graphs.pop(key, None)
                return None
            target, contrast = (
                indices(goal, request.names, len(x), classes, x.device)
                for goal in (request.target, request.contrast)
            )
            stream = torch.cuda.current_stream()
            if x.device in self._done:  # the graphs of a device share memory
                stream.wait_event(self._done[x.device])
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._record(key, model, x, composite, (target, contrast))
            if graph is None:
                return None
            self._graphs.move_to_end(key)
            result, finite = graph.replay(x, target, contrast), graph.finite.clone()
            self._done.setdefault(x.device, torch.cuda.Event()).record(stream)
        check_finite(finite)
        return result

    def _record(
        self,
        key: object,
        model: nn.Module,
        x: Tensor,
        composite: Composite,
        goals: tuple[Tensor | None, Tensor | None],
    ) -> _Graph | None:
        pool = self._pools.get(x.device)
        before = torch.cuda.memory_reserved(x.device)
        try:
            graph = _record(model, x, composite, goals, pool)
        except (RuntimeError, NotImplementedError) as error:
            # What cannot be recorded runs as ever, and any fault of its own shows there.
            _log.debug("a pass could not be recorded as a CUDA graph: %s", error)
            self._unfit.add(key)
            return None
            self._pools[x.device] = graph.graph.pool()
        grown = torch.cuda.memory_reserved(x.device) - before
        if grown > _SHARE * torch.cuda.get_device_properties(x.device).total_memory:
            self._unfit.add(key)
            return None
        self._graphs[key] = graph
        while len(self._graphs) > _MOST:
            self._graphs.popitem(last=False)
        return graph


def _record(
    model: nn.Module,
    x: Tensor,
    composite: Composite,
    goals: tuple[Tensor | None, Tensor | None],
    pool: Any,
) -> _Graph:
    x = x.detach().clone()
    target, contrast = (None if goal is None else goal.clone() for goal in goals)
    request = Request(
        target=None if target is None else Indices(target),
        contrast=None if contrast is None else Indices(contrast),
    )
    finite: list[Tensor] = []
    graph = torch.cuda.CUDAGraph()
    with (
        explaining(model, x, composite) as trace,
        torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
    ):
        result = explained(
            model, x, trace, request, lambda logits: finite.append(logits.isfinite().all())
        )
    return _Graph(graph, x, target, contrast, finite[0], result)


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
    backends = torch.backends
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


def _state(model: nn.Module) -> State | None:
    """All that a pass through a model can depend on but the values of its weights.

    Every attribute of every module and the code of every forward, to be compared by identity, and
    the place of every parameter and buffer in memory; None if a module has hooks.
    """
    objects: list[object] = []
    places: list[int] = []
    kinds: dict[type[nn.Module], None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        own = module.__dict__
        if any(own.get(hooks) for hooks in _HOOKS):
            return None
        kinds[type(module)] = None
        objects.extend(own.values())
        tensors = [*own["_parameters"].values(), *own["_buffers"].values()]
        objects.extend(tensors)
        objects.extend(x.dtype for x in tensors if x is not None)
        places.extend(x.data_ptr() for x in tensors if x is not None)
        waiting.extend(child for child in own["_modules"].values() if child is not None)
    objects.extend(kind.forward for kind in kinds)
    return objects, places


def _same(one: State, other: State) -> bool:
    (objects, places), (others, elsewhere) = one, other
    alike = len(objects) == len(others) and all(map(operator.is_, objects, others))
    return alike and places == elsewhere
