"""The explanation that is running: which rule acts at which site, and what was absorbed where.

A forward pass asks for the active trace through a context variable. Nothing is written onto the
user's model, so an exception leaves nothing behind, and threads that explain with one model under
different composites do not see each other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from vimlrp.errors import CompositeError
from vimlrp.tokens import TokenLayout

if TYPE_CHECKING:
    from vimlrp.rules import Rule

__all__ = [
    "Absorption",
    "InputRecord",
    "TokenRecord",
    "Trace",
    "Watcher",
    "active",
    "at_least_float32",
    "collecting",
    "constant",
    "frozen",
    "tracing",
]


class Watcher(Protocol):
    """Looks on at every site that a pass visits; see `vimlrp.guard` and `vimlrp.conservation`."""

    def visit(self, site: nn.Module, rule: "Rule", args: tuple[Any, ...]) -> Any:
        """Run the site under its rule and return its output."""

    def constant(self, x: Tensor) -> Tensor:
        """Learn that `x` counts as a constant from here on."""


@dataclass(frozen=True)
class InputRecord:
    """What the patch embedding saw: the start of relevance on pixels.

    Args:
        site: The patch embedding.
        image: Its input, (B, 3, H, W).
        content: Its output without the bias, (B, D, h, w), where the gradient is read.
    """

    site: nn.Module
    image: Tensor
    content: Tensor


@dataclass(frozen=True)
class TokenRecord:
    """The sum of patches, class tokens and position embedding, (B, L, D), and its layout."""

    tokens: Tensor
    layout: TokenLayout


@dataclass(frozen=True)
class Absorption:
    """Relevance that left the stream of activations at one place.

    Args:
        kind: What took it, such as "bias: convolution" or "position embedding".
        site: The module that holds it.
        share: Per sample, (B,).
    """

    kind: str
    site: nn.Module
    share: Tensor


@dataclass
class Trace:
    """One explanation pass.

    Args:
        rules: The rule of every site of the model.
        watcher: Looks on at every site, or None.
        fuse: Whether blocks may run as one operation where their rules allow it.
    """

    rules: Mapping[nn.Module, "Rule"]
    watcher: Watcher | None = None
    fuse: bool = False
    absorptions: list[Absorption] = field(default_factory=list)
    input: InputRecord | None = None
    tokens: TokenRecord | None = None
    site: nn.Module | None = None

    def visit(self, site: nn.Module, *args: Any) -> Any:
        """Run a site under the rule that the composite gives it."""
        rule = self.rule_of(site)
        outer, self.site = self.site, site
        try:
            if self.watcher is None:
                return rule.run(site, *args)
            return self.watcher.visit(site, rule, args)
        finally:
            self.site = outer

    def absorb(self, kind: str, stream: Tensor, constant: Tensor) -> None:
        """Note the share of a constant summand of `stream` once its gradient arrives.

        Args:
            kind: What the constant is.
            stream: The sum, (B, ...).
            constant: The summand, broadcastable to `stream`.
        """
        # The hook must not hold the trace: graph, hook and trace would keep each other alive.
        site, ledger, constant = self.site, self.absorptions, constant.detach()
        if site is None or not stream.requires_grad:
            return

        def note(gradient: Tensor | None) -> None:
            if gradient is None:  # no relevance came this way
                return
            precise = at_least_float32(gradient)
            share = _product(gradient.to(precise), constant.to(precise))
            ledger.append(Absorption(kind, site, share))

        stream.register_hook(note)

    def rule_of(self, site: nn.Module) -> "Rule":
        """The rule that the composite gives to a site."""
        try:
            return self.rules[site]
        except KeyError:
            raise CompositeError(
                f"the composite has no rule for this {type(site).__name__}: it was added to the "
                "model after the explanation began; build the Explainer again"
            ) from None


def at_least_float32(x: Tensor) -> torch.dtype:
    """The type in which sums over `x` are kept: its own, or float32 for half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _product(gradient: Tensor, constant: Tensor) -> Tensor:
    """The sum of gradient times constant over all but the first axis, (B,)."""
    if constant.dim() == 1:  # such as a bias over the last axis: no product need be stored
        return (gradient @ constant).reshape(len(gradient), -1).sum(1)
    return (gradient * constant).flatten(1).sum(1)


_ACTIVE: ContextVar[Trace | None] = ContextVar("vimlrp_trace", default=None)


def active() -> Trace | None:
    """The trace of the explanation that runs in this thread, or None in a plain forward pass."""
    # Models are compiled for plain passes; `vimlrp.engine` refuses to explain a compiled one.
    return None if torch.compiler.is_compiling() else _ACTIVE.get()


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Make `trace` the active one, and the former one again on exit."""
    token = _ACTIVE.set(trace)
    try:
        yield trace
    finally:
        _ACTIVE.reset(token)


@contextmanager
def collecting(absorptions: list[Absorption]) -> Iterator[None]:
    """Let the active trace note in another list what is absorbed in the part run inside."""
    trace = active()
    if trace is None:
        yield
        return
    outer, trace.absorptions = trace.absorptions, absorptions
    try:
        yield
    finally:
        trace.absorptions = outer


def frozen(parameter: Tensor) -> Tensor:
    """A parameter as an explanation uses it: without a gradient of its own, to save memory."""
    return parameter if active() is None else parameter.detach()


def constant(x: Tensor) -> Tensor:
    """`[x]_cst` of the rules: the same value, through which no relevance flows."""
    trace = active()
    if trace is None or trace.watcher is None:
        return x.detach()
    return trace.watcher.constant(x)
