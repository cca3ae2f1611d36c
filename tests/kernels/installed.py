"""What this machine has of the compiled library and of what compiles it."""

import shutil

import pytest

from vimlrp.kernels import compiled

BUILT, WHY = compiled.status()
SETS = [name for name, runs in compiled.instruction_sets().items() if runs] if BUILT else []
COMPILERS = [name for name in ("g++", "clang++", "c++") if shutil.which(name)]

needs_library = pytest.mark.skipif(not BUILT, reason=WHY)
