"""Makes `tests/golden` importable when this folder is run on its own."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
