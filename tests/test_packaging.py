import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_installs_no_top_level_package_but_vimlrp(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vimlrp"}


def test_the_wheel_holds_every_module_of_the_source(wheel: zipfile.ZipFile) -> None:
    source = {
        f"{package}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, package in (
            ("vimlrp", "vimlrp"),
            ("kernels", "vimlrp/kernels"),
            ("models", "vimlrp/models"),
        )
        for file in (ROOT / folder).rglob("*.py")
    }
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == source


def test_the_wheel_carries_types_weights_and_the_licence(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "vimlrp/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    weights = [name for name in names if name.endswith(".safetensors")]
    assert weights
    assert all(wheel.getinfo(name).file_size <= 8_000_000 for name in weights)


def test_the_unpacked_wheel_imports_and_runs(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import vimlrp, vimlrp.kernels, vimlrp.models; "
        f"assert vimlrp.__file__.startswith({str(tmp_path)!r}), vimlrp.__file__; "
        f"assert vimlrp.kernels.__file__.startswith({str(tmp_path)!r}), vimlrp.kernels.__file__; "
        "from vimlrp.cli import main; main(['models'])"
    )
    # -P keeps the checkout out of the path; the editable install is outranked by PYTHONPATH.
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "vim_nano_patch16_224.imagenette" in result.stdout
