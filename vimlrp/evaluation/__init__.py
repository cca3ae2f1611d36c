"""Is an explanation right? Metrics, the data they need, and tables of methods.

`vimlrp evaluate` runs it all; see docs/evaluation.md. A single number takes four lines:

    inference = Inference(model)
    batch = PreparedBatch(model, inference, x, target)
    maps = method_named("mambalrp")(model, x, target)
    metric_named("flipping:mean")(batch, method, maps).values["flipping:mean/delta_logit"]
"""

from vimlrp.evaluation.data import DataSet, Problem, Sample, read_data
from vimlrp.evaluation.measures import Measured, Metric, PreparedBatch, Statistic
from vimlrp.evaluation.methods import CompositeMethod, Method, method_named, method_names
from vimlrp.evaluation.metrics import METRICS, metric_named, metrics_named
from vimlrp.evaluation.replacement import PROTOCOLS
from vimlrp.evaluation.results import Results, collect
from vimlrp.evaluation.running import Plan, run
from vimlrp.evaluation.store import Store
from vimlrp.inference import Inference

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "CompositeMethod",
    "DataSet",
    "Inference",
    "Measured",
    "Method",
    "Metric",
    "Plan",
    "PreparedBatch",
    "Problem",
    "Results",
    "Sample",
    "Statistic",
    "Store",
    "collect",
    "method_named",
    "method_names",
    "metric_named",
    "metrics_named",
    "read_data",
    "run",
]
