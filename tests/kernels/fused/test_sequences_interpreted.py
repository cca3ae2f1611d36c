"""The fused Triton programs without a GPU: their agreement tests in Triton's interpreter.

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the Triton programs themselves")
def test_fused_programs_agree_with_their_twins_in_the_interpreter() -> None:
    file = Path(__file__).parent / "test_sequences_agree.py"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(
        [*command, "-k", "triton or written"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 85
