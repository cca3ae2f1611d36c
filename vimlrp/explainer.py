"""`explain` and `Explainer`: from a model and images to relevance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor, nn

from vimlrp.composites import Composite
from vimlrp.engine import Request, Result, check_eager
from vimlrp.errors import InputError, TargetError
from vimlrp.graphs import Replays
from vimlrp.inputs import Batch, Images, batches, device_and_dtype
from vimlrp.models import class_names
from vimlrp.relevance import Relevance
from vimlrp.rules import Rule
from vimlrp.targets import Target
from vimlrp.wrapping import wrap

__all__ = ["Explainer", "explain", "model_name"]

CompositeLike = str | Composite | Mapping[str, Rule | str]

_FIELDS = tuple(field.name for field in fields(Result) if field.name != "colours")
"""What a result and a `Relevance` have in common."""


class Explainer:
    """Explains many images with one model.

    The model is left as it is: weights, gradients, hooks, device and training flags. Several
    threads may use explainers of one model at a time.

    Args:
        model: A classifier built from sites, such as one that vimlrp registers with timm, or one
            for `vimlrp.wrap`.
        composite: The rules: a name of `vimlrp.composites.COMPOSITES`, a mapping such as
            {"base": "mambalrp", "projection": "gamma(0.1)"}, or a `Composite`.
        batch_size: Samples to run at a time; None for 16 pictures, or a tensor as it is.
        graphs: Whether a GPU may replay passes of one shape as CUDA graphs, which small batches
            gain from; None leaves it to the environment variable VIMLRP_GRAPHS, by default it may.

    Example:
        >>> explainer = Explainer(model)  # doctest: +SKIP
        >>> for relevance in explainer.stream(loader):  # doctest: +SKIP
        ...     maps.append(relevance.patches.cpu())
    """

    def __init__(
        self,
        model: nn.Module,
        composite: CompositeLike = "mambalrp",
        *,
        batch_size: int | None = None,
        graphs: bool | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more, or None")
        check_eager(model)
        self.model = model
        self.composite = Composite.ensure(composite)
        self.batch_size = batch_size
        self.class_names = class_names(model)
        self._replays = Replays(graphs)

    def __call__(
        self,
        images: Images,
        *,
        target: Target = None,
        contrast: Target = None,
        record: Sequence[str] = (),
        start: tuple[str, Tensor] | None = None,
    ) -> Relevance:
        """Explain images.

        Args:
            images: A path, PIL image or array, a list of them, or a preprocessed tensor
                (B, 3, H, W) on the model's device.
            target: None for the predicted class, a class index or name, one per sample, a (B,)
                tensor, or a callable from logits (B, C) to (B,) that is linear.
            contrast: A class to subtract, in any of these forms.
            record: Names of layers whose activation and relevance come back.
            start: A layer's name and a direction in its activation, to explain their product
                instead of a logit.

        Raises:
            InputError: If an image or tensor is not what the model takes.
            TargetError: If the target does not exist.
            UnsupportedModelError: If part of the model has no rule.
        """
        parts, done = [], 0
        total = _count(images)
        model = wrap(self.model)
        for batch in batches(images, model, self.batch_size):
            stop = done + len(batch.x)
            request = Request(
                _slice(target, done, stop, total),
                _slice(contrast, done, stop, total),
                self.class_names,
                record,
                start,
                None if total is None else (done, stop, total),
            )
            parts.append(self._explain(model, batch, request))
            done = stop
        return Relevance.cat(parts)

    def stream(
        self, loader: Iterable[Any], *, target: Target = None, labels: bool = False, **options: Any
    ) -> Iterator[Relevance]:
        """Explain a DataLoader batch by batch.

        Args:
            loader: Yields tensors (B, 3, H, W), or tuples that begin with one.
            target: As for a call; one for all.
            labels: Explain the labels, which the tuples hold in their second place.
            **options: As for a call.
        """
        device, _ = device_and_dtype(self.model)
        for item in loader:
            x, *rest = item if isinstance(item, tuple | list) else (item,)
            if not isinstance(x, Tensor):
                raise InputError(
                    f"the loader yields {type(x).__name__}; give one that yields tensors "
                    "(B, 3, H, W), or tuples that begin with one"
                )
            if labels and not rest:
                raise InputError("labels=True needs a loader of (images, labels)")
            yield self(x.to(device), target=rest[0] if labels else target, **options)

    def _explain(self, model: nn.Module, batch: Batch, request: Request) -> Relevance:
        result = self._replays(model, batch.x, self.composite, request)
        return Relevance(
            **{name: getattr(result, name) for name in _FIELDS},
            model=model_name(self.model),
            composite=str(self.composite),
            class_names=self.class_names,
            sources=batch.sources,
        )


def explain(
    model: nn.Module,
    images: Images,
    *,
    target: Target = None,
    contrast: Target = None,
    composite: CompositeLike = "mambalrp",
    record: Sequence[str] = (),
    start: tuple[str, Tensor] | None = None,
    batch_size: int | None = None,
) -> Relevance:
    """Explain what a classifier sees in images, in one call.

    Args:
        model: See `Explainer`.
        images: See `Explainer.__call__`, as for the arguments that follow.
        target: What to explain; the predicted class by default.
        contrast: A class to subtract.
        composite: The rules.
        record: Layers whose relevance comes back too.
        start: A layer and a direction to explain instead of a logit.
        batch_size: Samples to run at a time.

    Example:
        >>> name = "vim_nano_patch16_224.imagenette"
        >>> model = timm.create_model(name, pretrained=True)  # doctest: +SKIP
        >>> vimlrp.explain(model, "church.jpg").save("church")  # doctest: +SKIP
    """
    explainer = Explainer(model, composite, batch_size=batch_size)
    return explainer(images, target=target, contrast=contrast, record=record, start=start)


def model_name(model: nn.Module) -> str:
    """What a model is called: its architecture and its weights, or the name of its class.

    Args:
        model: Any.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    name = str(config.get("architecture") or type(model).__name__)
    weights = getattr(model, "weights_source", None)
    if weights is None:
        return name
    return f"{name}.{weights}" if weights == config.get("tag") else f"{name} with {weights}"


def _count(images: Images) -> int | None:
    if isinstance(images, Tensor):
        return len(images) if images.dim() == 4 else 1
    return len(images) if isinstance(images, list | tuple) else 1


def _slice(target: Target, start: int, stop: int, total: int | None) -> Target:
    """The part of per-sample targets that belongs to one batch."""
    many = isinstance(target, Sequence) and not isinstance(target, str)
    if not many and not (isinstance(target, Tensor | np.ndarray) and target.ndim):
        return target
    if len(target) != total:  # type: ignore[arg-type]
        raise TargetError(f"{len(target)} targets were given for {total} images; give one each")  # type: ignore[arg-type]
    return target[start:stop]  # type: ignore[index]
