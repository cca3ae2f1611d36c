import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DEMOS = Path(__file__).resolve().parent.parent / "demos"


def test_the_notebook_runs_and_shows_pictures() -> None:
    notebook = nbformat.read(DEMOS / "explain.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert sum("image/png" in out.get("data", {}) for out in outputs) >= 4


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(DEMOS / "explain.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_the_photo_demo_sees_a_church_in_the_palace(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(DEMOS / "explain_photo.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "relevance for church" in result.stdout
    assert (tmp_path / "explanations" / "china" / "china.pixels.png").stat().st_size > 10_000
