"""Packages that only some of vimlrp needs, asked for when that runs."""

from importlib import import_module
from typing import Any

from vimlrp.errors import MissingDependencyError

__all__ = ["optional"]


def optional(module: str, package: str, extra: str) -> Any:
    """Import a module.

    Args:
        module: Its name.
        package: The package that holds it, by the name under which it is installed.
        extra: The extra of vimlrp that installs it.

    Raises:
        MissingDependencyError: If it cannot be imported, with the line that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {package}, which cannot be imported ({error}): "
            f"pip install 'vimlrp[{extra}]'"
        ) from error
