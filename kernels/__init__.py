"""The selective scan of Mamba-1, and its relevance pass, behind one function.

`scan` holds the selective scan on every backend, `fused` the element-wise runs around it, and
`products` float32 products. They share what lies beside them: `backends` chooses, `compiled` calls
the C++ of `csrc`, and `extension`, `dtypes` and `launching` know of mamba-ssm, precision and GPUs.
"""

from vimlrp.kernels.backends import Backend, backends
from vimlrp.kernels.scan.operation import selective_scan, selective_scan_relevance
from vimlrp.kernels.scan.order import ScanOrder

__all__ = ["Backend", "ScanOrder", "backends", "selective_scan", "selective_scan_relevance"]
