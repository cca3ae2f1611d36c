"""Explain Vision Mamba image classifiers with layer-wise relevance propagation.

Importing vimlrp registers its models with timm.
"""

from vimlrp.composites import COMPOSITES, Composite
from vimlrp.conservation import Conservation, check_conservation
from vimlrp.errors import VimLRPError
from vimlrp.explainer import Explainer, explain
from vimlrp.models.checkpoint import load_checkpoint
from vimlrp.relevance import Relevance
from vimlrp.wrapping import wrap

__all__ = [
    "COMPOSITES",
    "Composite",
    "Conservation",
    "Explainer",
    "Relevance",
    "VimLRPError",
    "check_conservation",
    "explain",
    "load_checkpoint",
    "wrap",
]
