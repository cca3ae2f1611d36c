"""Runs of element-wise operations as single ones, forward and in the relevance pass.

`sequences` has those of a Vim block, `maps` those of a VMamba block, and `pointwise` the factors
that rules take. They check the arguments and choose a backend; a module of the same name with the
ending `_reference`, `_native` or `_triton` computes.
"""
