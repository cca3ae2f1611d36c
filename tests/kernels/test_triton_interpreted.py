"""The Triton programs without a GPU: the agreement tests once more, in Triton's interpreter.

The interpreter must be chosen before anything imports Triton, hence a process of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

FILES = (
    "fused/test_pointwise_triton.py",
    "scan/test_backends_agree.py",
    "scan/test_triton_scalar_gradient.py",
    "test_products_triton.py",
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the Triton programs themselves")
def test_triton_agrees_with_the_twin_in_the_interpreter() -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    done = subprocess.run(
        [*command, *(str(here / name) for name in FILES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 50
