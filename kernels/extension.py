"""The CUDA extension of mamba-ssm (Gu and Dao, 2023): whether it is there."""

import functools
import importlib
import importlib.util

import torch

__all__ = ["EXTENSION", "status"]

# The compiled module that mamba-ssm installs beside its Python package.
EXTENSION = "selective_scan_cuda"
_INSTALL = 'run `pip install "vimlrp[mamba-ssm]" --no-build-isolation`'


def status() -> tuple[bool, str]:
    """Whether the extension can run here, and why, or why not, in one sentence."""
    if importlib.util.find_spec(EXTENSION) is None:
        return False, f"the CUDA extension of mamba-ssm is not installed; {_INSTALL}"
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA GPU"
    return _imports()


@functools.cache
def _imports() -> tuple[bool, str]:
    try:
        importlib.import_module(EXTENSION)
    except ImportError as error:
        return False, f"the CUDA extension of mamba-ssm does not import ({error}); {_INSTALL}"
    return True, "the CUDA extension of mamba-ssm, with copies into its layout"
