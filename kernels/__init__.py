"""The selective scan of Mamba-1, and its relevance pass, behind one function."""

from vimlrp.kernels.backends import Backend, backends
from vimlrp.kernels.operation import selective_scan, selective_scan_relevance
from vimlrp.kernels.order import ScanOrder

__all__ = ["Backend", "ScanOrder", "backends", "selective_scan", "selective_scan_relevance"]
