"""Compiles the C++ scan into the package, where that is possible.

Everything else about the build stands in pyproject.toml. The library is plain C to its callers, so
one wheel serves every Python of a platform. It is optional: without a compiler, or with
VIMLRP_NO_NATIVE=1, the package is built without it and scans in PyTorch.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
SOURCES = Path("kernels", "csrc")
# Where the library goes, in a checkout and in an installed package.
IN_CHECKOUT, IN_PACKAGE = Path("kernels", "_scan.so"), Path("vimlrp", "kernels", "_scan.so")
VARIABLE = "VIMLRP_NO_NATIVE"
COMPILERS = ("g++", "clang++", "c++")
# Never -ffast-math: the exponential rounds by adding and subtracting a large number.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-fno-math-errno", "-ffp-contract=fast"),
)
# Compiled once for each instruction set; library.cpp picks one at run time.
KERNELS = ("scan", "fused", "maps")
PORTABLE = {"portable": ()}
X86 = {"avx2": ("-mavx2", "-mfma"), "avx512": ("-mavx2", "-mfma", "-mavx512f")}


class CompileError(Exception):
    """Why there is no library."""


def compiler() -> str:
    """The C++ compiler: of the variable CXX, or the first that is installed."""
    named = os.environ.get("CXX")
    found = [path for name in ([named] if named else COMPILERS) if (path := shutil.which(name))]
    if not found:
        raise CompileError(f"found no C++ compiler ({named or ', '.join(COMPILERS)})")
    return found[0]


def run(*command: str) -> None:
    """Run a step of the compilation."""
    result = subprocess.run(  # noqa: S603 (the command is made here)
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise CompileError(f"`{' '.join(command)}` failed:\n{result.stderr}")


def compile_library(to: Path) -> None:
    """Compile and link, with OpenMP where the compiler has it."""
    if os.environ.get(VARIABLE, "0") not in {"", "0"}:
        raise CompileError(f"{VARIABLE} is set")
    if os.name != "posix":
        raise CompileError("the build of the C++ scan knows Linux and macOS only")
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compile(compiler(), Path(folder), ["-fopenmp"])
        except CompileError:
            _compile(compiler(), Path(folder), [])
        to.parent.mkdir(parents=True, exist_ok=True)
        # A new file in one step: a running process keeps the library that it has loaded.
        shutil.copyfile(Path(folder, "library"), to.with_suffix(".new"))
        to.with_suffix(".new").replace(to)


def _compile(cxx: str, folder: Path, openmp: list[str]) -> None:
    x86 = platform.machine() in {"x86_64", "AMD64"}
    flags = [*FLAGS, *(["-DVIMLRP_X86"] if x86 else [])]
    objects = [str(folder / "library.o")]
    run(cxx, *flags, *openmp, "-c", str(SOURCES / "library.cpp"), "-o", objects[0])
    for name, options in (PORTABLE | (X86 if x86 else {})).items():
        for kernel in KERNELS:
            objects.append(str(folder / f"{kernel}_{name}.o"))
            table = f"-D{kernel.upper()}={kernel}_{name}"
            source = str(SOURCES / f"{kernel}.cpp")
            run(cxx, *flags, *options, table, "-c", source, "-o", objects[-1])
    # Nothing of the C++ library is used, so nothing of it need be installed.
    slim = ["-Wl,--as-needed"] if platform.system() == "Linux" else []
    run(cxx, "-shared", *slim, *openmp, *objects, "-o", str(folder / "library"))


class BuildNative(Command):
    """The step of `build` that compiles the library."""

    description = "compile the C++ scan"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """Leave the places to the other steps."""
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        """Build where the modules are put."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    @property
    def target(self) -> Path:
        """Where the library goes."""
        return ROOT / IN_CHECKOUT if self.editable_mode else Path(str(self.build_lib), IN_PACKAGE)

    def run(self) -> None:
        """Compile; on failure say why and build the package without the library."""
        # What an earlier build left there may be of other sources.
        self.target.unlink(missing_ok=True)
        try:
            compile_library(self.target)
        except (CompileError, OSError) as problem:
            self.warn(f"vimlrp is built without its C++ scan and will use PyTorch: {problem}")

    def get_source_files(self) -> list[str]:
        """For source distributions."""
        return sorted(path.as_posix() for path in SOURCES.iterdir())

    def get_outputs(self) -> list[str]:
        """What was built."""
        return [str(self.target)] if self.target.exists() else []

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing is linked to the checkout: an editable build compiles right there."""
        return {}


class Build(build):
    """`build` with the library as its last step."""

    sub_commands: ClassVar[list[tuple[str, None]]] = [*build.sub_commands, ("build_native", None)]


class BdistWheel(bdist_wheel):
    """A wheel for any Python of this platform, or for any platform without the library."""

    def run(self) -> None:
        """Compile first: the kind of the wheel depends on the outcome."""
        self.run_command("build")
        built = bool(self.get_finalized_command("build_native").get_outputs())
        self.root_is_pure = not built
        # Asked by the step that arranges the files, which knows of no library by ctypes.
        self.distribution.has_ext_modules = lambda: built
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Name no Python: the library does not know any."""
        *_, system = super().get_tag()
        return "py3", "none", "any" if self.root_is_pure else system


setup(cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": BdistWheel})
