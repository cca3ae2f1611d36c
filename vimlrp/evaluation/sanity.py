"""Sanity: does a map depend on the model's weights and on the class that it explains."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vimlrp.errors import InputError
from vimlrp.evaluation.measures import (
    NO_CURVES,
    Measured,
    PreparedBatch,
    Statistic,
    column_mean,
    columns,
    even_steps,
)
from vimlrp.evaluation.methods import Method, explained_by

__all__ = [
    "OtherClass",
    "Randomisation",
    "cascade",
    "other_classes",
    "randomised",
    "rank_correlation",
]

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def cascade(model: nn.Module) -> list[str]:
    """The parts of a model that are randomised one after the other, from the output down.

    Parts are the children of the model that have parameters, those of lists and sequences in it
    one by one; parameters of the model itself come last, under the name "".
    """
    parts = list(_parts(model, ""))[::-1]
    return [*parts, ""] if any(True for _ in model.parameters(recurse=False)) else parts


def _parts(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module.named_children():
        if isinstance(child, _CONTAINERS):
            yield from _parts(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield prefix + name


def randomised(model: nn.Module, parts: Sequence[str], *, seed: int = 0) -> nn.Module:
    """A copy of a model in whose parts the entries of every parameter are shuffled.

    Source: cascading randomisation of Adebayo et al., NeurIPS 2018; shuffling keeps the
    distribution of every parameter, so that a state space model stays one.

    Args:
        model: Is left as it is.
        parts: Out of `cascade`.
        seed: Of the shuffling.

    Raises:
        InputError: If the model has no such part.
    """
    known = dict(model.named_modules())
    unknown = [name for name in parts if name not in known]
    if unknown:
        raise InputError(f"the model has no part {unknown[0]!r}; see cascade(model)")
    new = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name in parts:
        part = new.get_submodule(name)
        for parameter in part.parameters(recurse=name != ""):
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            shuffled = parameter.detach().flatten()[order].view_as(parameter)
            parameter.data = shuffled
    return new


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's rank correlation of maps, ties sharing their mean rank, (B,) within -1 to 1.

    Source: one of the similarities of Adebayo et al., NeurIPS 2018. Between a map and that of a
    randomised model, or of another class, lower is better: the map depended on what was changed.
    NaN for constant maps.

    Args:
        maps: (B, H, W).
        others: The same.
    """
    first, second = _ranks(maps.flatten(1)), _ranks(others.flatten(1))
    first = first - first.mean(1, keepdim=True)
    second = second - second.mean(1, keepdim=True)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks, (B, N) float64."""
    ordered, order = values.sort(dim=1)
    ordered = ordered.contiguous()
    low = torch.searchsorted(ordered, ordered, right=False)
    high = torch.searchsorted(ordered, ordered, right=True)
    return torch.empty(values.shape, dtype=torch.float64, device=values.device).scatter_(
        1, order, (low + high - 1).double() / 2
    )


def other_classes(target: Tensor, classes: int, seeds: Tensor) -> Tensor:
    """Another class for each sample, (B,), chosen by its seed alone.

    Args:
        target: (B,).
        classes: Their number.
        seeds: (B,) int64.

    Raises:
        InputError: If there is no other class.
    """
    if classes < 2:
        raise InputError("the model has one class; the check of another one needs two")
    shift = 1 + seeds.to(target.device) % (classes - 1)
    return (target + shift) % classes


@dataclass(frozen=True)
class Randomisation:
    """Rank correlation with maps of models whose parts were shuffled, from the output down.

    Source: Adebayo et al., NeurIPS 2018; lower is better. A column for each stage, the share of
    parts that are shuffled, and their mean.

    Args:
        stages: How many, in equal distances; the last one shuffles everything.
        seed: Of the shuffling.
    """

    name: str = "randomisation"
    stages: int = 4
    seed: int = 0
    _copies: dict[int, tuple[nn.Module, list[nn.Module]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "mean similarity", "mean", "lower"),
            column_mean(self, "last similarity", f"stage_{self.stages}", "lower"),
        )

    @property
    def curve_axis(self) -> tuple[str, tuple[float, ...]]:
        """See `Metric`."""
        return "share of parts shuffled", even_steps(self.stages)[1:]

    def __call__(self, batch: PreparedBatch, method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        found = [
            rank_correlation(maps, explained_by(method, model, batch.x, batch.target))
            for model in self._models(batch.model)
        ]
        curve = torch.stack(found, dim=1)
        stages = {f"stage_{i}": values for i, values in enumerate(found, 1)}
        measured = columns(self.name, mean=curve.mean(1), **stages)
        parts = cascade(batch.model)
        points = torch.tensor([count / max(len(parts), 1) for count in self._counts(parts)])
        return Measured(measured.values, {f"{self.name}/shuffled_similarity": curve}, points)

    def _counts(self, parts: Sequence[str]) -> list[int]:
        """How many parts are shuffled at each stage."""
        return [-(-len(parts) * i // self.stages) for i in range(1, self.stages + 1)]

    def _models(self, model: nn.Module) -> list[nn.Module]:
        """The shuffled copies, made once for all batches."""
        if id(model) not in self._copies:
            parts = cascade(model)
            copies = [randomised(model, parts[:n], seed=self.seed) for n in self._counts(parts)]
            self._copies.clear()
            self._copies[id(model)] = model, copies
        return self._copies[id(model)][1]


@dataclass(frozen=True)
class OtherClass:
    """Rank correlation with the map of another class; lower is better.

    Source: the random logit test of Sixt, Granz and Landgraf, ICML 2020, by Spearman's correlation.
    It is not the data randomisation test of Adebayo et al., NeurIPS 2018, which compares with a
    model trained on randomly permuted labels and so takes a training that no metric can do. With
    such a model at hand, `rank_correlation` of the maps of both is that test.
    """

    name: str = "other_class"
    curve_axis: tuple[str, None] = NO_CURVES

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (column_mean(self, "similarity", "similarity", "lower"),)

    def __call__(self, batch: PreparedBatch, method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        classes = batch.inference(batch.x[:1]).shape[1]
        other = other_classes(batch.target, classes, batch.seeds)
        others = explained_by(method, batch.model, batch.x, other)
        return columns(self.name, similarity=rank_correlation(maps, others))
