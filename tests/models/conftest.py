"""Makes `tests/golden` importable when this folder is run on its own, and keeps to one thread."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def _one_thread():
    from golden.reference import one_thread

    with one_thread():
        yield
