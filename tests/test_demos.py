import subprocess
import sys
from pathlib import Path

import cv2
import nbformat
import numpy as np
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


def explain_photo(tmp_path: Path, *photos: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMOS / "explain_photo.py"), *photos],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_both_models_see_a_church_in_the_palace(tmp_path: Path) -> None:
    result = explain_photo(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("relevance for church") == 2
    china = tmp_path / "explanations" / "china"
    both = {"vim_nano_patch16_224.imagenette", "vmamba_nano_s1l8_224.imagenette"}
    assert both < {path.name for path in china.iterdir()}
    assert all((china / name / "china.pixels.png").stat().st_size > 10_000 for name in both)
    height, width = cv2.imread(str(china / "side_by_side.png")).shape[:2]
    assert width > 3 * height


def test_a_photo_that_cannot_be_read_costs_the_others_nothing(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((300, 300, 3), 128, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = explain_photo(tmp_path, "broken.png", "grey.png")
    assert result.returncode == 1
    assert "skipped broken.png" in result.stderr
    assert (tmp_path / "explanations" / "grey" / "side_by_side.png").exists()
