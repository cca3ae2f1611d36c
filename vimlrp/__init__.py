"""Explain Vision Mamba image classifiers with layer-wise relevance propagation."""

import vimlrp.models as _models  # noqa: F401  registers the models with timm
