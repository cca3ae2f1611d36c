"""Plain forward passes in great number: no gradients, blocks fused where they can be."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.composites import Composite
from vimlrp.engine import fuses
from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.inputs import device_and_dtype
from vimlrp.modes import evaluation_mode
from vimlrp.rules import Rule
from vimlrp.sites import Site
from vimlrp.tracing import Trace, tracing
from vimlrp.wrapping import wrap

__all__ = ["Inference"]

# The rules under which a block runs as one operation. Rules prescribe gradients and leave values
# alone, so without gradients only the cost of the sites that stay apart matters.
_FUSED = {"base": "mambalrp", "convolution": "zero", "patch_embedding": "zero"}


class Inference:
    """Logits of many inputs of one model, which is left as it is.

    A pass gives what `model(x)` gives, up to rounding: where blocks can run as one operation (see
    the environment variable VIMLRP_FUSED) they do.

    Args:
        model: A classifier; one that vimlrp registers, an instance of an official class, or any.
        dtype: The type to compute in, such as torch.bfloat16 for a copy of the model in it; None
            for the model's own.
        batch_size: Inputs to run at a time.

    Raises:
        InputError: If `batch_size` or `dtype` is not usable.

    Example:
        >>> logits = Inference(model, dtype=torch.bfloat16)(x)  # doctest: +SKIP
    """

    def __init__(
        self, model: nn.Module, *, dtype: torch.dtype | None = None, batch_size: int = 256
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more")
        if dtype is not None and not dtype.is_floating_point:
            raise InputError(f"dtype is {dtype}; give a floating-point type such as torch.bfloat16")
        self.batch_size = batch_size
        model = _counterpart(model)
        self.device, own = device_and_dtype(model)
        self.dtype = dtype or own
        self.model = model if self.dtype == own else copy.deepcopy(model).to(self.dtype)
        self._rules = _rules(self.model)

    @property
    def has_tokens(self) -> bool:
        """Whether `embed` and `tokens` exist: the model is a Vim."""
        return hasattr(self.model, "forward_tokens")

    def __call__(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: Preprocessed images (B, 3, H, W).

        Returns:
            Logits (B, C), float32 at least.
        """
        return self._in_pieces(self.model, x)

    def embed(self, x: Tensor) -> Tensor:
        """The sequence that enters the first block of a Vim.

        Args:
            x: Preprocessed images (B, 3, H, W).

        Returns:
            The sum of patches, class tokens and positions, (B, L, D).
        """
        model = self._token_model()
        with self.running(x):
            return torch.cat([model.embed(piece) for piece in self._pieces(x)])

    def tokens(self, tokens: Tensor) -> Tensor:
        """Classify sequences.

        Args:
            tokens: As `embed` returns them, (B, L, D).

        Returns:
            Logits (B, C), float32 at least.
        """
        return self._in_pieces(self._token_model().forward_tokens, tokens)

    @contextmanager
    def running(self, x: Tensor) -> Iterator[None]:
        """The circumstances of a plain pass: evaluation mode, no gradients, blocks fused.

        Args:
            x: What will be run.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluation_mode(self.model))
            if self._rules is not None and fuses(x[:0].to(self.dtype)):
                stack.enter_context(tracing(Trace(self._rules, fuse=True)))
            yield

    def _in_pieces(self, run: Any, x: Tensor) -> Tensor:
        with self.running(x):
            logits = torch.cat([run(piece) for piece in self._pieces(x)])
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _pieces(self, x: Tensor) -> Iterator[Tensor]:
        for piece in x.split(self.batch_size):
            yield piece.to(self.dtype)

    def _token_model(self) -> Any:
        if not self.has_tokens:
            raise InputError(
                f"{type(self.model).__name__} has no sequence of tokens that could be changed: "
                "take a Vim, or change pixels"
            )
        return self.model


def _counterpart(model: nn.Module) -> nn.Module:
    """An official instance as our own model of the same parameters; any other as it is."""
    try:
        wrapped = wrap(model)
    except UnsupportedModelError:
        return model
    return wrapped if hasattr(wrapped, "forward_tokens") else model


def _rules(model: nn.Module) -> dict[nn.Module, Rule] | None:
    if not any(isinstance(module, Site) for module in model.modules()):
        return None
    return Composite.ensure(_FUSED).resolve(model)
