"""Explain Vision Mamba image classifiers with layer-wise relevance propagation."""
