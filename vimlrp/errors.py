"""The exceptions of vimlrp, one family rooted at `VimLRPError`.

Every message says what was given, what is accepted and what to do. The module imports nothing,
so that kernels, models and the library share it without a cycle.
"""

__all__ = [
    "CheckpointError",
    "CompositeError",
    "InputError",
    "KernelError",
    "MissingDependencyError",
    "TargetError",
    "UnsupportedModelError",
    "VimLRPError",
]


class VimLRPError(Exception):
    """Root of every error that vimlrp raises on purpose."""


class InputError(VimLRPError, ValueError):
    """An image, tensor or argument that cannot be explained as given."""


class TargetError(VimLRPError, ValueError):
    """A target or contrast that the model does not have, or that is not linear in the logits."""


class CompositeError(VimLRPError, ValueError):
    """A composite that names an unknown rule or site, or leaves a site without a rule."""


class UnsupportedModelError(VimLRPError, ValueError):
    """A model with an operation outside the sites, whose relevance would be silently wrong.

    It is no TypeError: PyTorch's operators swallow those, and the message with them.
    """


class CheckpointError(VimLRPError, ValueError):
    """A checkpoint file that is damaged, unsafe or of another architecture."""


class KernelError(VimLRPError, ValueError):
    """A selective scan called with shapes, types or a backend that it does not have."""


class MissingDependencyError(VimLRPError, ImportError):
    """An optional package is missing; the message carries the line that installs it."""
