import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "vimlrp/kernels/_scan.so"
COMPILERS = [name for name in ("g++", "clang++", "c++") if shutil.which(name)]


def build_wheel(folder: Path, source: Path = ROOT, **variables: str) -> zipfile.ZipFile:
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
        str(source),
    ]
    subprocess.run(build, check=True, timeout=300, env=os.environ | variables)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def described(wheel: zipfile.ZipFile) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
    return wheel.read(name).decode()


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


def test_the_wheel_carries_the_templates_of_the_report(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "vimlrp" / "audit" / "reporting" / "templates"
    source = {path.relative_to(ROOT).as_posix() for path in folder.iterdir()}
    assert len(source) > 1
    assert {name for name in wheel.namelist() if "/templates/" in name} == source


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


@pytest.mark.skipif(not COMPILERS, reason="there is no C++ compiler")
@pytest.mark.skipif("VIMLRP_NO_NATIVE" in os.environ, reason="VIMLRP_NO_NATIVE is set")
def test_the_wheel_carries_the_compiled_scan_and_names_its_platform(
    wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    assert LIBRARY in wheel.namelist()
    (_, python, abi, platform) = Path(str(wheel.filename)).stem.rsplit("-", 3)
    assert (python, abi) == ("py3", "none")
    assert platform != "any"
    assert f"Tag: py3-none-{platform}" in described(wheel)
    assert "Root-Is-Purelib: false" in described(wheel)
    wheel.extractall(tmp_path)
    code = "from vimlrp.kernels import compiled; print(compiled.LIBRARY, *compiled.status())"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert result.stdout.startswith(f"{tmp_path / LIBRARY} True C++ with ")


def test_the_wheel_holds_no_sources_of_the_compiled_scan(wheel: zipfile.ZipFile) -> None:
    assert not [name for name in wheel.namelist() if name.endswith((".cpp", ".h"))]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the build reads, so that its leavings are not those of other tests."""
    for name in ("vimlrp", "kernels", "models"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    return tmp_path / "source"


@pytest.mark.parametrize(
    "variables",
    [{"VIMLRP_NO_NATIVE": "1"}, {"CXX": "false"}, {"CXX": "no-such-compiler"}],
    ids=["unwanted", "failing", "missing"],
)
def test_a_wheel_without_the_compiled_scan_is_for_any_platform(
    variables: dict[str, str], checkout: Path, tmp_path: Path
) -> None:
    stale = checkout / "build" / "lib" / LIBRARY
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier build")
    wheel = build_wheel(tmp_path / "wheel", checkout, **variables)
    assert LIBRARY not in wheel.namelist()
    assert str(wheel.filename).endswith("-py3-none-any.whl")
    assert "Tag: py3-none-any" in described(wheel)


@pytest.mark.skipif(not COMPILERS, reason="there is no C++ compiler")
def test_a_source_distribution_can_compile_the_scan(checkout: Path) -> None:
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, check=True, timeout=300, capture_output=True
    )
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, checkout / "dist", filter="data")
    (unpacked,) = (path for path in (checkout / "dist").iterdir() if path.is_dir())
    sources = {path.name for path in (ROOT / "kernels" / "csrc").iterdir()}
    assert {path.name for path in (unpacked / "kernels" / "csrc").iterdir()} == sources
    assert (unpacked / "setup.py").exists()
