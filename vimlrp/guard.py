"""The guard: refuses a model whose relevance would be silently wrong.

Outside the sites every operation on a tensor that depends on the input must be linear in it. The
guard runs the model once on one sample and decides from the operations that run and from what
depends on the input, never from module types: a functional SiLU, a product of two branches, a
softmax, an in-place write or a custom autograd Function inside any module is found.
"""

import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vimlrp import layers
from vimlrp.composites import Composite
from vimlrp.errors import UnsupportedModelError
from vimlrp.rules import Rule
from vimlrp.tracing import Trace, tracing

__all__ = ["SUPPORTED_FAMILIES", "WRAPPED_FAMILIES", "check_supported"]

SUPPORTED_FAMILIES = ("vim", "vmamba", "mambavision")
"""Model families whose registered models are built from sites."""

WRAPPED_FAMILIES = (
    *("resnet", "resnetv2", "convnext", "vision_transformer", "deit", "swin_transformer"),
    *("mambaout", "efficientvim", "efficientnet", "mobilenetv3", "regnet", "densenet", "vgg"),
    *("mlp_mixer", "inception_next"),
)
"""Families of timm's whose models `vimlrp.wrap` gives sites."""

_FAMILIES = f"{', '.join(SUPPORTED_FAMILIES)}, and of timm's {', '.join(WRAPPED_FAMILIES)}"

_LINEAR = frozenset(
    """_adaptive_avg_pool2d _reshape_alias _to_copy _unsafe_view adaptive_avg_pool2d add alias
    as_strided avg_pool1d avg_pool2d cat clone constant_pad_nd contiguous cumsum diagonal expand
    flatten flip im2col mean movedim narrow neg permute pixel_shuffle pixel_unshuffle
    reflection_pad2d repeat reshape roll rot90 rsub select slice split split_with_sizes squeeze
    stack sub sum swapaxes t to transpose unbind unfold unsafe_split unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d view view_as""".split()  # noqa: SIM905
)
"""Linear in all tensors together."""

_BILINEAR: Mapping[str, tuple[int, ...]] = {
    "mul": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "matmul": (0, 1),
    "linear": (0, 1),
    "convolution": (0, 1),
    "addmm": (1, 2),
    "addmv": (1, 2),
    "baddbmm": (1, 2),
}
"""Linear as long as only one of the arguments at these places depends on the input."""

_FIRST_ONLY: Mapping[str, tuple[int, ...]] = {
    "div": (1,),
    "index": (1,),
    "index_select": (2,),
    "gather": (2,),
    "where": (0,),
    "masked_fill": (1,),
}
"""Linear as long as the arguments at these places do not depend on the input."""

_INDEPENDENT = frozenset(
    """empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full
    new_empty_strided""".split()  # noqa: SIM905
)
"""Read the shape of a tensor only."""

_EXITS = frozenset(
    (
        Tensor.numpy,
        Tensor.__array__,
        Tensor.tolist,
        Tensor.__dlpack__,
        Tensor.data_ptr,
        Tensor.data.__get__,  # type: ignore[attr-defined]
    )
)
"""Ways for values to leave PyTorch, or autograd, without an operation that the dispatcher sees."""

_CUSTOM = "the custom autograd Function"
_CUT = "behind a detach() or no_grad(), which cuts the gradient,"

_verdicts: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()


def check_supported(model: nn.Module, x: Tensor, composite: Composite) -> None:
    """Refuse a model with a non-linear operation outside its sites.

    The verdict is kept per model, composite and shape of the input, and taken anew when modules,
    hooks or patched forwards of the model change. Other methods patched onto a model after its
    first explanation, and flags that change what a forward does, are not noticed.

    Args:
        model: In evaluation mode.
        x: A batch, (B, 3, H, W); its first sample is run.
        composite: Its rules say which paths are constant.

    Raises:
        UnsupportedModelError: Naming the module and the operation.
    """
    known = _verdicts.setdefault(model, set())
    key = (tuple(x.shape[1:]), x.dtype, x.device, str(composite), _structure(model))
    if key in known:
        return
    guard = Guard(model, x[:1])
    trace = Trace(composite.resolve(model), watcher=guard)
    with tracing(trace), torch.enable_grad(), _Exits(guard), guard:
        logits = model(guard.image)
    guard.check_functions(logits)
    _check_start(model, trace, guard.image)
    if not guard.depends(logits):
        raise UnsupportedModelError(
            f"the output of {type(model).__name__} does not depend on its input through any "
            "operation that PyTorch records; a foreign kernel may hide it"
        )
    known.add(key)


def _check_start(model: nn.Module, trace: Trace, image: Tensor) -> None:
    if trace.input is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no patch embedding site, so relevance cannot reach its "
            f"pixels; supported families: {_FAMILIES}"
        )
    read = trace.input.image
    if read.shape != image.shape or not torch.equal(read, image):
        name = next(name for name, m in model.named_modules() if m is trace.input.site)
        raise UnsupportedModelError(
            f"the patch embedding {name} does not read the model's input as it is, so its "
            "relevance would lie on other pixels: move what comes before it into the preprocessing"
        )


def _structure(model: nn.Module) -> int:
    """Changes with the modules of a model, with patched forwards and with hooks."""
    return hash(
        tuple(
            (name, type(m), id(m), id(vars(m).get("forward")), *_hooks(m))
            for name, m in model.named_modules()
        )
    )


def _hooks(module: nn.Module) -> Iterator[int]:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        # Other threads may be adding the hooks of their own explanations, which change nothing.
        for hook in list(hooks.values()):
            if getattr(hook, "__module__", None) != layers.__name__:
                yield id(hook)


class Guard(TorchDispatchMode):
    """Follows what depends on the input through every operation outside the sites.

    Args:
        model: Names the modules in messages.
        image: One sample; the pass must start from `guard.image`.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(module): name for name, module in model.named_modules()}
        # Storages are kept alive, so that a freed address is never taken for a dependent one.
        self._dependent: dict[int, Any] = {}
        self._own: set[Any] = set()
        self._inside = 0
        self._started = False
        self.image = image.detach().clone()
        self._mark(self.image)

    def depends(self, x: Any) -> bool:
        """Whether a value is a tensor that depends on the input."""
        return isinstance(x, Tensor) and x.untyped_storage()._cdata in self._dependent

    def visit(self, site: nn.Module, rule: Rule, args: tuple[Any, ...]) -> Any:
        """Let a site do what its rule says; its output depends on what its inputs depend on."""
        self._check_site(site, args)
        self._inside += 1
        try:
            out = rule.run(site, *args)
        finally:
            self._inside -= 1
        if any(map(self.depends, args)):
            self._started = True
            self._mark(out)
        self._own.update(_nodes(out, {x.grad_fn for x in args if isinstance(x, Tensor)}))
        return out

    def _check_site(self, site: nn.Module, args: tuple[Any, ...]) -> None:
        kind = str(site.kind).replace("_", " ")
        if kind == "patch embedding" and self._started:
            raise UnsupportedModelError(self._message("a second patch embedding"))
        if self._started and not self._inside and self._is_cut(args, {}):
            raise UnsupportedModelError(self._message(f"a {kind} {_CUT}"))

    def check_exit(self, function: Any, args: tuple[Any, ...]) -> None:
        """Refuse that dependent values leave PyTorch, where nothing can follow them.

        Args:
            function: What is called.
            args: Its arguments.

        Raises:
            UnsupportedModelError: If it is such an exit.
        """
        if function in _EXITS and not self._inside and any(map(self.depends, args)):
            name = getattr(function, "__self__", function).__name__
            custom = _custom_function()
            complaint = f"{_CUSTOM} {custom}" if custom else f"{name}, which PyTorch cannot follow,"
            raise UnsupportedModelError(self._message(complaint))

    def check_functions(self, logits: Tensor) -> None:
        """Find custom Functions whose kernels the dispatcher does not see, by their nodes.

        Args:
            logits: The model's output.

        Raises:
            UnsupportedModelError: If the graph holds one outside the sites.
        """
        for node in _nodes(logits, set()):
            if isinstance(node, BackwardCFunction) and node not in self._own:
                complaint = f"{_CUSTOM} {_function_name(node)}"
                raise UnsupportedModelError(self._message(complaint))

    def constant(self, x: Tensor) -> Tensor:
        """A copy that no longer counts as dependent."""
        self._inside += 1
        try:
            return x.detach().clone()
        finally:
            self._inside -= 1

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Check one operation and run it."""
        kwargs = kwargs or {}
        if self._inside or not any(map(self.depends, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        complaint = self._complaint(func, name, args, kwargs)
        if complaint:
            raise UnsupportedModelError(self._message(complaint))
        out = func(*args, **kwargs)
        if name not in _INDEPENDENT:
            self._mark(out)
        return out

    def _complaint(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        function = _custom_function()
        if function is not None:
            return f"{_CUSTOM} {function}"
        if func._schema.is_mutable:
            return f"the in-place operation {name}"
        if name in _INDEPENDENT:
            return None
        if name == "detach":
            return "detach(), which cuts the gradient,"
        if not self._is_linear(func, name, args):
            return f"{name}, which is not linear in them,"
        if self._is_cut(args, kwargs):
            return f"{name} {_CUT}"
        return None

    def _is_linear(self, func: Any, name: str, args: tuple[Any, ...]) -> bool:
        if func.namespace != "aten":
            return False
        if name == "_to_copy" or name in _LINEAR:
            return True
        if name in _BILINEAR:
            return sum(self._any(args, place) for place in _BILINEAR[name]) <= 1
        return name in _FIRST_ONLY and not any(self._any(args, p) for p in _FIRST_ONLY[name])

    def _any(self, args: tuple[Any, ...], place: int) -> bool:
        return place < len(args) and any(map(self.depends, tree_leaves(args[place])))

    def _is_cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        dependent = list(filter(self.depends, tree_leaves((args, kwargs))))
        carried = torch.is_grad_enabled() and all(x.requires_grad for x in dependent)
        return self._started and bool(dependent) and not carried

    def _mark(self, out: Any) -> None:
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self._dependent[storage._cdata] = storage

    def _message(self, complaint: str) -> str:
        return (
            f"{self._place()} applies {complaint} to values that depend on the input. Outside a "
            "site this has no rule, and its relevance would be a silent plain gradient. Build this "
            "part from the sites of vimlrp.sites (Activation, Gate, Norm, Scan, Linear, ...), or "
            f"use a supported family: {_FAMILIES}."
        )

    def _place(self) -> str:
        for frame in _frames():
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self._names:
                name = self._names[id(module)] or "the model itself"
                code = frame.f_code
                return f"{name} ({type(module).__name__}, {code.co_filename}:{frame.f_lineno})"
        return "the model"


class _Exits(TorchFunctionMode):
    """Watches the ways out of PyTorch that a dispatch mode does not see.

    Args:
        guard: Knows what depends on the input.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Check one call and make it."""
        self._guard.check_exit(func, args)
        return func(*args, **(kwargs or {}))


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _custom_function() -> str | None:
    """The name of the innermost custom autograd Function whose forward runs now."""
    for frame in _frames():
        if frame.f_code.co_name != "forward" or isinstance(frame.f_locals.get("self"), nn.Module):
            continue
        for value in frame.f_locals.values():
            if isinstance(value, FunctionCtx):
                return _function_name(value)
        for function in _subclasses(torch.autograd.Function):
            if getattr(function.forward, "__code__", None) is frame.f_code:
                return function.__name__
    return None


def _subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for child in base.__subclasses__():
        yield child
        yield from _subclasses(child)


def _function_name(node: Any) -> str:
    return type(node).__name__.removesuffix("Backward")


def _nodes(outputs: Any, stop: set[Any]) -> Iterator[Any]:
    """All nodes of the autograd graph behind some tensors, as far as those in `stop`."""
    waiting = [x.grad_fn for x in tree_leaves(outputs) if isinstance(x, Tensor)]
    seen = set(stop)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
        yield node
