"""Attribution methods to compare an explanation with, all behind one call.

Example:
    >>> from vimlrp.baselines import METHODS, method
    >>> maps = method("integrated_gradients")(model, x, target)  # (B, H, W)  # doctest: +SKIP
    >>> [name for name, m in METHODS.items() if m.single_pass]  # doctest: +SKIP
"""

from vimlrp.baselines.contract import Method, Models
from vimlrp.baselines.registry import METHODS, method

__all__ = ["METHODS", "Method", "Models", "method"]
