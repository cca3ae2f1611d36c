"""Whether methods and metrics fit a model and data, before anything is measured or written."""

from collections.abc import Iterable

import torch
from torch import nn

from vimlrp.baselines.contract import Method as Registered
from vimlrp.baselines.lrp import EXPLAINED
from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.evaluation.data import DataSet
from vimlrp.evaluation.faithfulness import Black, Flipping, Insertion
from vimlrp.evaluation.localisation import smoothed
from vimlrp.evaluation.measures import Metric
from vimlrp.evaluation.methods import CompositeMethod, Method
from vimlrp.evaluation.objects import Localisation, Pointing, Segmentation
from vimlrp.evaluation.patches import patch_size_of
from vimlrp.evaluation.replacement import canvas_of
from vimlrp.inference import Inference
from vimlrp.inputs import device_and_dtype, preprocessing_of
from vimlrp.sites import Site
from vimlrp.wrapping import wrap

__all__ = ["check_methods", "check_metrics"]

_BY_REGION = (Localisation, Pointing, Segmentation)


def check_methods(methods: Iterable[Method], model: nn.Module) -> None:
    """Check that methods take a model; of callables of one's own nothing is known.

    Args:
        methods: To be used.
        model: To be explained.

    Raises:
        UnsupportedModelError: If a method does not take the model.
        CompositeError: If a composite has no rule for a part of it.
    """
    for method in methods:
        if isinstance(method, Registered):
            method.check(model)
        elif isinstance(method, CompositeMethod):
            _check_sites(method, wrap(model))


def _check_sites(method: CompositeMethod, model: nn.Module) -> None:
    if not any(isinstance(module, Site) for module in model.modules()):
        raise UnsupportedModelError(
            f"LRP takes {EXPLAINED.text}, and was given a {type(model).__name__}"
        )
    method.composite.resolve(model)


def check_metrics(
    metrics: Iterable[Metric], model: nn.Module, data: DataSet, patch_size: int | None
) -> None:
    """Check that metrics can be measured.

    Args:
        metrics: To be measured.
        model: To be explained.
        data: To measure on.
        patch_size: Side of the patches that are removed; None for the model's own.

    Raises:
        InputError: If one needs boxes or masks and there are none, patches do not cover or fit the
            input, or the model has no tokens to replace.
    """
    height, width = preprocessing_of(model).size
    device, dtype = device_and_dtype(model)
    x = torch.zeros(1, 3, height, width, device=device, dtype=dtype)
    for metric in metrics:
        if isinstance(metric, _BY_REGION) and not data.has_regions:
            raise InputError(
                f"{metric.name} needs boxes or masks, and the data have none: see "
                "docs/evaluation.md for the columns of a CSV file that names them"
            )
        if isinstance(metric, Flipping | Insertion):
            canvas_of(metric.protocol, Inference(model), x, patch_size)
        if isinstance(metric, (Black, *_BY_REGION)) and metric.level == "patches":
            smoothed(x[:, 0], patch_size or patch_size_of(model))
