"""One explanation pass: forward under a composite, gradient back, relevance read off."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.account import Account
from vimlrp.composites import Composite
from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.guard import check_supported
from vimlrp.kernels.backends import choose
from vimlrp.layers import LayerRecord, Streams, watch_layers
from vimlrp.modes import evaluation_mode
from vimlrp.rules import AffineRule
from vimlrp.targets import Seed, Target, seed
from vimlrp.tracing import Trace, Watcher, at_least_float32, tracing

FUSE_VARIABLE = "VIMLRP_FUSED"
"""0 runs every block by its sites, 1 fuses where the rules allow it, and auto, the default, does so
on GPUs, and in float32 on a CPU where the compiled library is usable."""

__all__ = [
    "Request",
    "Result",
    "check_eager",
    "check_finite",
    "explained",
    "explaining",
    "fuses",
    "propagate",
]


@dataclass(frozen=True)
class Request:
    """What is asked of a pass.

    Args:
        target: See `vimlrp.targets.seed`.
        contrast: A class to subtract.
        names: The model's class names.
        record: Layers whose activation and relevance come back.
        start: A layer and a direction in its activation, (C,) or of the activation's shape, whose
            product with the activation is explained instead of a logit.
        place: The first sample, the one after the last, and the number of all samples, where this
            pass explains a part of them; a direction for every sample is cut accordingly.
    """

    target: Target = None
    contrast: Target = None
    names: Sequence[str] | None = None
    record: Sequence[str] = ()
    start: tuple[str, Tensor] | None = None
    place: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Result:
    """What comes back, B samples each; see `vimlrp.Relevance` for the fields.

    `colours` are the pixels before the sum over colours, (B, 3, H, W).
    """

    colours: Tensor
    pixels: Tensor
    patches: Tensor
    tokens: Tensor | None
    logits: Tensor
    target: Tensor | None
    contrast: Tensor | None
    account: Account
    recorded: Mapping[str, LayerRecord] = field(default_factory=dict)

    def clone(self) -> "Result":
        """Copies of all tensors; layers are not recorded."""
        account = Account(
            self.account.target.clone(),
            {kind: share.clone() for kind, share in self.account.parts.items()},
        )
        names = ("colours", "pixels", "patches", "tokens", "logits", "target", "contrast")
        copies = {name: _copy(getattr(self, name)) for name in names}
        return Result(**copies, account=account)


def _copy(x: Tensor | None) -> Any:
    return None if x is None else x.clone()


@contextmanager
def explaining(
    model: nn.Module, x: Tensor, composite: Composite, watcher: Watcher | None = None
) -> Iterator[Trace]:
    """The circumstances of an explanation: guard passed, evaluation mode, gradients, a trace.

    Args:
        model: A model built from sites.
        x: The batch that will be run.
        composite: The rules.
        watcher: Looks on at every site.
    """
    check_eager(model)
    _check_one_device(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluation_mode(model))
        check_supported(model, x, composite)
        trace = Trace(composite.resolve(model), watcher, fuse=fuses(x))
        yield stack.enter_context(tracing(trace))


def fuses(x: Tensor) -> bool:
    """Whether blocks run as one operation: where the fused operations are compiled for x.

    Args:
        x: A batch, on the device and of the type that the model computes in.

    Raises:
        InputError: If the environment variable VIMLRP_FUSED holds something else than its values.
    """
    wish = os.environ.get(FUSE_VARIABLE, "auto")
    if wish not in ("auto", "0", "1"):
        raise InputError(f"{FUSE_VARIABLE} is {wish!r}; give auto, 0 or 1")
    if wish != "auto":
        return wish == "1"
    chosen = choose("auto", x.device, x.dtype)
    if x.is_cuda:
        return chosen != "reference"  # which is what float64 gets
    return chosen == "native" and x.dtype == torch.float32


def check_eager(model: nn.Module) -> None:
    """Refuse a model that is compiled, as a whole or in part.

    Args:
        model: Any module.

    Raises:
        UnsupportedModelError: Naming the part.
    """
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise UnsupportedModelError(
                f"{name or 'the model'} is compiled, and rules cannot act inside compiled code: "
                "explain the model before torch.compile (model._orig_mod holds it)"
            )


def _check_one_device(model: nn.Module) -> None:
    devices = {p.device for p in model.parameters()}
    if len(devices) > 1:
        raise InputError(
            f"the model's parameters lie on {', '.join(sorted(map(str, devices)))}; "
            "move it to one device with model.to(device)"
        )


def propagate(model: nn.Module, x: Tensor, composite: Composite, request: Request) -> Result:
    """Explain a batch.

    Args:
        model: A model built from sites.
        x: (B, 3, H, W), preprocessed, on the model's device and of its type.
        composite: The rules.
        request: What to explain and what to bring back.

    Raises:
        UnsupportedModelError: If the guard refuses the model.
        TargetError: If the target does not exist.
        InputError: If a layer does not exist or a direction does not fit.
    """
    with explaining(model, x, composite) as trace:
        # A tensor of the user's inference mode takes part as a copy, made here, where that is off.
        x = x.detach().clone() if x.is_inference() else x.detach()
        return explained(model, x, trace, request, check_finite)


def explained(
    model: nn.Module,
    x: Tensor,
    trace: Trace,
    request: Request,
    check: Callable[[Tensor], None],
) -> Result:
    """The pass itself; on a GPU it waits for nothing but what `check` and the target ask for.

    Args:
        model: As for `propagate`, as is `request`.
        x: A batch that nothing writes to meanwhile, outside inference mode.
        trace: Of `explaining`.
        request: What to explain and what to bring back.
        check: Is given the logits, (B, C).
    """
    layers = [*request.record, *([request.start[0]] if request.start else [])]
    with watch_layers(model, layers, trace) as streams:
        logits = _check_logits(model(x), x)
    check(logits)
    _check_streams(streams, layers)
    goal = _goal(logits, streams, request)
    gradients = _backward(goal.value, trace, streams, request.record)
    return _read_off(trace, logits, goal, streams, gradients, request)


def _check_logits(logits: Any, x: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(
            f"the model returned {given} for {len(x)} images; a classifier returns (B, C)"
        )
    return logits


def check_finite(values: Tensor) -> None:
    """Refuse logits, or a flag made of them, that hold NaN or infinite values or are False."""
    finite = values if values.dtype == torch.bool else values.isfinite().all()
    if not finite:
        raise InputError(
            "the model's logits are not finite, so there is nothing to explain: check its weights, "
            "and use bfloat16 or float32 where float16 overflows"
        )


def _check_streams(streams: Streams, layers: Sequence[str]) -> None:
    for name in layers:
        if not streams.get(name):
            raise InputError(
                f"the model has a layer {name!r}, but did not run it or got no tensor from it"
            )


def _goal(logits: Tensor, streams: Streams, request: Request) -> Seed:
    if request.start is None:
        return seed(logits, request.target, request.contrast, request.names)
    if request.target is not None or request.contrast is not None:
        raise InputError("either a target or a direction to start from is explained: give one")
    name, direction = request.start
    activation = sum(streams[name], torch.zeros((), dtype=logits.dtype, device=logits.device))
    direction = _direction_of(direction, activation, request)
    try:
        product = activation * direction
    except RuntimeError:
        product = activation.new_empty(0)
    if product.shape != activation.shape:
        raise InputError(
            f"a direction of shape {tuple(direction.shape)} does not fit the activation of {name}, "
            f"{tuple(activation.shape)}"
        )
    return Seed(product.flatten(1).sum(1), None)


def _direction_of(direction: Tensor, activation: Tensor, request: Request) -> Tensor:
    if request.place is not None and direction.dim() == activation.dim():
        first, last, total = request.place
        direction = direction[first:last] if len(direction) == total else direction
    return direction.detach().clone().to(activation)


def _backward(
    value: Tensor, trace: Trace, streams: Streams, record: Sequence[str]
) -> dict[int, Tensor]:
    """Gradients by the identity of the tensors at which they are read."""
    wanted = [stream for name in record for stream in streams[name]]
    if trace.input is not None:
        wanted.append(trace.input.content)
    if trace.tokens is not None:
        wanted.append(trace.tokens.tokens)
    # What the rules hold constant has no gradient, and no relevance.
    reached = [x for x in wanted if x.requires_grad]
    gradients = torch.autograd.grad(value.sum(), reached, allow_unused=True)
    found = {id(x): torch.zeros_like(x) for x in wanted}
    pairs = zip(reached, gradients, strict=True)
    return found | {id(x): g.detach() for x, g in pairs if g is not None}


def _read_off(
    trace: Trace,
    logits: Tensor,
    goal: Seed,
    streams: Streams,
    gradients: Mapping[int, Tensor],
    request: Request,
) -> Result:
    colours, patches = _pixels(trace, gradients)
    pixels = colours.sum(1)
    return Result(
        colours=colours,
        pixels=pixels,
        patches=patches,
        tokens=_tokens(trace, gradients),
        logits=logits.detach(),
        target=goal.target,
        contrast=goal.contrast,
        account=Account.of(
            goal.value.to(pixels.dtype), pixels.flatten(1).sum(1), trace.absorptions
        ),
        recorded={
            name: LayerRecord.of(streams[name], [gradients[id(s)] for s in streams[name]])
            for name in request.record
        },
    )


def _pixels(trace: Trace, gradients: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Relevance of each colour of the pixels, (B, 3, H, W), and of the patches, (B, h, w)."""
    start = trace.input
    if start is None:
        raise UnsupportedModelError("the model has no patch embedding site")
    precise = at_least_float32(start.content)
    content, gradient = start.content.detach().to(precise), gradients[id(start.content)].to(precise)
    rule: Any = trace.rule_of(start.site)
    if not isinstance(rule, AffineRule):
        raise UnsupportedModelError(f"{rule} does not lead down to pixels")
    trace.site = start.site
    values: Tensor = rule.relevance(start.site, start.image.to(precise), gradient)  # type: ignore[arg-type]
    cells: Any = start.site.cells
    return values, _summed((content * gradient).sum(1), cells)


def _summed(shares: Tensor, cells: int) -> Tensor:
    """Sum squares of `cells` x `cells`, what hangs over the edges included: (B, h, w)."""
    height, width = shares.shape[1:]
    shares = F.pad(shares, (0, -width % cells, 0, -height % cells))
    return shares.unflatten(2, (-1, cells)).unflatten(1, (-1, cells)).sum((2, 4))


def _tokens(trace: Trace, gradients: Mapping[int, Tensor]) -> Tensor | None:
    """Relevance of the sums of patch and position embedding, (B, L)."""
    if trace.tokens is None:
        return None
    tokens = trace.tokens.tokens
    precise = at_least_float32(tokens)
    return (tokens.detach().to(precise) * gradients[id(tokens)].to(precise)).sum(-1)
