"""The loop of an evaluation: batches by methods by metrics, from where it was interrupted."""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.ahead import read_ahead
from vimlrp.errors import InputError
from vimlrp.evaluation.checks import check_methods, check_metrics
from vimlrp.evaluation.data import DataSet, Problem, Sample
from vimlrp.evaluation.fingerprints import data_hash, method_hashes, weights_hash
from vimlrp.evaluation.measures import Metric, PreparedBatch
from vimlrp.evaluation.methods import Method, explained_by
from vimlrp.evaluation.regions import region_of
from vimlrp.evaluation.store import Part, Store
from vimlrp.inference import Inference
from vimlrp.inputs import device_and_dtype, preprocessing_of
from vimlrp.photos import read_photo

__all__ = ["CURVE", "POINTS", "VALUE", "Plan", "Progress", "run"]

Goal = Literal["predicted", "label"]
Progress = Callable[[int, int, str], None]
"""Is told how many parts are done, how many there are, and what comes next."""

VALUE, CURVE, POINTS = "value ", "curve ", "points "
"""Begin the names of a part's arrays: values (n,), curves (n, S), and where their points lie, (S,),
by metric. One array more, `place`, says which samples of the batch they are of."""

_READERS = 8


@dataclass(frozen=True, eq=False)
class Plan:
    """What is evaluated, on what, and how.

    Args:
        model: The classifier.
        model_name: As the report calls it.
        data: The samples.
        methods: By name.
        metrics: In the order of the table's columns.
        target: Explain the "predicted" class, or the "label" of each sample.
        batch_size: Samples to explain at a time.
        forward_size: Perturbed inputs to classify at a time.
        dtype: Type of the plain passes; None for the model's own.
        patch_size: Side of the patches that are removed; None for the model's own.
    """

    model: nn.Module
    model_name: str
    data: DataSet
    methods: Mapping[str, Method]
    metrics: Sequence[Metric]
    target: Goal = "predicted"
    batch_size: int = 32
    forward_size: int = 256
    dtype: torch.dtype | None = None
    patch_size: int | None = None

    def __post_init__(self) -> None:
        if self.target not in ("predicted", "label"):
            raise InputError(f"target is {self.target!r}; give 'predicted' or 'label'")
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}; give 1 or more")
        for what, given in (("methods", self.methods), ("metrics", self.metrics)):
            if not given:
                raise InputError(f"no {what} were given; give at least one")

    def batches(self) -> list[tuple[int, Sequence[Sample]]]:
        """The samples in batches: the place of the first, and they themselves."""
        samples = self.data.samples
        return [
            (start, samples[start : start + self.batch_size])
            for start in range(0, len(samples), self.batch_size)
        ]

    def key_of(self, name: str) -> str:
        """What a method's parts are kept under: its name and a hash of what it does.

        A composite that was changed under the same name is another method, and so is another
        function.

        Args:
            name: Of the method, or empty for what does not depend on one.
        """
        return f"{name}-{self._method_hashes[name]}" if name else ""

    @cached_property
    def _method_hashes(self) -> Mapping[str, str]:
        return method_hashes(self.methods)

    @cached_property
    def _hashes(self) -> tuple[str, str]:
        """Of the weights and of the data."""
        return weights_hash(self.model), data_hash(self.data)

    def check(self) -> None:
        """Check that methods and metrics fit the model and the data, before a folder is made.

        Raises:
            InputError: If a metric cannot be measured on this model or these data.
            UnsupportedModelError: If a method does not take the model.
            CompositeError: If a composite has no rule for a part of it.
        """
        check_metrics(self.metrics, self.model, self.data, self.patch_size)
        check_methods(self.methods.values(), self.model)

    def settings(self) -> dict[str, Any]:
        """All that a part depends on, except its method."""
        return {
            "model": self.model_name,
            "vimlrp": version("vimlrp"),
            "weights_sha256": self._hashes[0],
            "preprocessing": asdict(preprocessing_of(self.model)),
            "data_sha256": self._hashes[1],
            "samples": len(self.data.samples),
            "metrics": [repr(metric) for metric in self.metrics],
            "target": self.target,
            "batch_size": self.batch_size,
            "plain_passes": str(self.dtype or device_and_dtype(self.model)[1]),
            "patch_size": self.patch_size,
        }


def run(plan: Plan, store: Store, progress: Progress | None = None) -> None:
    """Measure what is missing in the store.

    Args:
        plan: What to measure.
        store: Of the plan's settings.
        progress: Is told how far it is.

    Raises:
        InputError: If a metric cannot be measured on this model or these data.
        UnsupportedModelError: If a method does not take the model.
    """
    plan.check()
    tell = progress or (lambda *_: None)
    inference = Inference(plan.model, dtype=plan.dtype, batch_size=plan.forward_size)
    batches = plan.batches()
    names = ["", *plan.methods]
    missing = {
        i: [n for n in names if (i, plan.key_of(n)) not in store] for i in range(len(batches))
    }
    total = len(batches) * len(names)
    done = total - sum(map(len, missing.values()))
    todo = [i for i, parts in missing.items() if parts]
    for i, (first, read) in zip(todo, _read_ahead([batches[i] for i in todo], plan), strict=True):
        tell(done, total, f"batch {i + 1} of {len(batches)}")
        batch, part = _prepare(plan, inference, first, read)
        if "" in missing[i]:
            store[i, ""] = part
            done += 1
        for name in missing[i]:
            if name:
                tell(done, total, f"batch {i + 1} of {len(batches)}: {name}")
                store[i, plan.key_of(name)] = _measure(plan, name, batch, read)
                done += 1
    tell(done, total, "done")


@dataclass(frozen=True, eq=False)
class _Read:
    """The readable samples of a batch.

    Args:
        places: Their places in the batch.
        samples: Themselves.
        x: (n, 3, H, W).
        regions: (n, H, W).
        problems: Of all samples of the batch.
        count: Of all samples.
    """

    places: list[int]
    samples: list[Sample]
    x: Tensor
    regions: Tensor
    problems: list[Problem]
    count: int

    @property
    def names(self) -> list[str]:
        """Of the readable samples."""
        return [sample.name for sample in self.samples]


def _read_ahead(
    batches: Sequence[tuple[int, Sequence[Sample]]], plan: Plan
) -> Iterator[tuple[int, _Read]]:
    """Read batches, the next one while one is measured."""
    with ThreadPoolExecutor(_READERS) as pool:
        reads = read_ahead(lambda batch: _read(batch[1], plan, pool), batches)
        yield from zip((first for first, _ in batches), reads, strict=True)


_Row = tuple[Tensor | None, NDArray[np.bool_] | None, list[Problem]]


def _read(samples: Sequence[Sample], plan: Plan, pool: ThreadPoolExecutor) -> _Read:
    preprocessing = preprocessing_of(plan.model)

    def one(sample: Sample) -> _Row:
        if plan.target == "label" and sample.label is None:
            return None, None, [Problem(sample.name, "no label", "so it has no target")]
        try:
            photo = read_photo(sample.path)
            x, geometry = preprocessing(photo)
        except InputError as error:
            return None, None, [Problem(sample.name, "picture cannot be read", str(error))]
        return x, *region_of(sample, photo, geometry)

    rows = list(pool.map(one, samples))
    good = [i for i, (x, _, _) in enumerate(rows) if x is not None]
    x = torch.stack([rows[i][0] for i in good]) if good else torch.empty(0)  # type: ignore[misc]
    regions = np.stack([rows[i][1] for i in good]) if good else np.zeros((0, 1, 1), bool)  # type: ignore[misc]
    problems = [problem for _, _, found in rows for problem in found]
    kept = [samples[i] for i in good]
    return _Read(good, kept, x, torch.from_numpy(regions), problems, len(samples))


def _prepare(
    plan: Plan, inference: Inference, first: int, read: _Read
) -> tuple[PreparedBatch | None, Part]:
    """Put a batch on the device, and note what the model says of it."""
    facts = {"samples": float(read.count)}
    places = np.array(read.places, dtype=np.float64)
    if not read.samples:
        return None, Part({"place": places}, read.problems, facts)
    device, dtype = device_and_dtype(plan.model)
    x = read.x.to(device, dtype)
    logits = inference(x)
    probability, predicted = logits.softmax(1).max(1)
    labels = [-1 if sample.label is None else sample.label for sample in read.samples]
    label = torch.tensor(labels, device=device)
    target = label if plan.target == "label" else predicted
    batch = PreparedBatch(
        model=plan.model,
        inference=inference,
        x=x,
        target=target,
        regions=read.regions.to(device) if plan.data.has_regions else None,
        seeds=first + torch.tensor(read.places),
        patch_size=plan.patch_size,
        label=label,
    )
    arrays = {"predicted": predicted, "probability": probability, "target": target}
    return batch, Part(_arrays("", arrays) | {"place": places}, read.problems, facts)


def _measure(plan: Plan, name: str, batch: PreparedBatch | None, read: _Read) -> Part:
    """All metrics of one method on one batch; sample by sample where the whole is refused."""
    if batch is None:
        return Part({"place": np.zeros(0)})
    try:
        return _measured(plan, name, batch, read.places, read.names)
    except InputError as error:
        if len(batch) == 1:
            return Part(
                {"place": np.zeros(0)}, [Problem(read.names[0], "no map", str(error), name)]
            )
    parts = [
        _measure(plan, name, batch.row(i), replace(read, places=[place], samples=[sample]))
        for i, (place, sample) in enumerate(zip(read.places, read.samples, strict=True))
    ]
    return _joined(parts)


def _joined(parts: Sequence[Part]) -> Part:
    """Parts of single samples as one."""
    full = [part.arrays for part in parts if len(part.arrays["place"])]
    keys = full[0] if full else ("place",)
    arrays = {
        key: full[0][key]
        if key.startswith(POINTS)
        else np.concatenate([a[key] for a in full or [{key: np.zeros(0)}]])
        for key in keys
    }
    facts: dict[str, float] = {}
    for part in parts:
        for key, fact in part.facts.items():
            known = facts.get(key, 0.0)
            facts[key] = max(known, fact) if key == "bytes" else known + fact
    problems = [problem for part in parts for problem in part.problems]
    return Part(arrays, problems, facts, max(part.device for part in parts))


def _measured(
    plan: Plan, name: str, batch: PreparedBatch, places: Sequence[int], samples: Sequence[str]
) -> Part:
    method = plan.methods[name]
    maps, cost = _timed(lambda: explained_by(method, plan.model, batch.x, batch.target), batch.x)
    arrays: dict[str, NDArray[np.float64]] = {}
    points: dict[str, Tensor] = {}
    started = time.perf_counter()
    for metric in plan.metrics:
        measured = metric(batch, method, maps)
        arrays |= _arrays(VALUE, measured.values) | _arrays(CURVE, measured.curves)
        if measured.points is not None:
            points[metric.name] = measured.points
    cost["metric_seconds"] = time.perf_counter() - started
    broken = ~maps.isfinite().flatten(1).all(1).cpu().numpy()
    for values in arrays.values():  # no order can be read off such a map
        values[broken] = np.nan
    arrays |= _arrays(POINTS, points) | {"place": np.array(places, dtype=np.float64)}
    return Part(arrays, _map_problems(maps, name, samples), cost, _device_name(batch.x))


def _device_name(x: Tensor) -> str:
    kind = torch.cuda.get_device_name(x.device) if x.is_cuda else platform.machine()
    return f"{x.device.type} ({kind})"


def _map_problems(maps: Tensor, method: str, samples: Sequence[str]) -> list[Problem]:
    flat = maps.flatten(1)
    broken = (~flat.isfinite()).any(1).tolist()
    constant = (flat == flat[:, :1]).all(1).tolist()
    problems = []
    for name, is_broken, is_constant in zip(samples, broken, constant, strict=True):
        if is_broken:
            problems.append(Problem(name, "map not finite", "NaN or infinite values", method))
        elif is_constant:
            detail = "every pixel the same: its order is the reading order"
            problems.append(Problem(name, "constant map", detail, method))
    return problems


def _timed(call: Callable[[], Tensor], x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Run something, and what it cost: seconds and, on a GPU, the memory it took beside x."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
    started = time.perf_counter()
    out = call()
    cost = {"images": float(len(x))}
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
        cost["bytes"] = float(torch.cuda.max_memory_allocated(x.device) - before)
    return out, {"seconds": time.perf_counter() - started, **cost}


def _arrays(kind: str, values: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    return {f"{kind}{key}": v.detach().double().cpu().numpy() for key, v in values.items()}
