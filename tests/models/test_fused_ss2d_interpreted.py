"""VMamba's fused block by its Triton programs without a GPU, in Triton's interpreter.

The interpreter must be chosen before anything imports Triton, hence a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the Triton programs themselves")
def test_a_fused_block_by_triton_programs_in_the_interpreter():
    file = Path(__file__).parent / "test_fused_ss2d.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file), "-k", "triton"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "2 passed" in done.stdout
