"""Packages that only some methods need, asked for when one of those runs."""

from importlib import import_module
from typing import Any

from vimlrp.errors import MissingDependencyError

__all__ = ["EXTRA", "optional"]

EXTRA = "baselines"
"""The extra of vimlrp that installs them."""


def optional(module: str, package: str) -> Any:
    """Import a module.

    Args:
        module: Its name.
        package: The package that holds it, by the name under which it is installed.

    Raises:
        MissingDependencyError: If it cannot be imported, with the line that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this method needs {package}, which cannot be imported ({error}): "
            f"pip install 'vimlrp[{EXTRA}]'"
        ) from error
