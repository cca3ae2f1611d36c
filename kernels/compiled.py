"""The C++ library that the package's build compiled, by ctypes: whether it is there, and its calls.

It holds the selective scan and the fused operations. It is optional, knows neither Python nor
PyTorch, and holds its loops once for every instruction set; what the processor reports decides
which one runs.
"""

import ctypes
import functools
import os
from pathlib import Path

from vimlrp.errors import KernelError

__all__ = [
    "ISA_VARIABLE",
    "LIBRARY",
    "Operand",
    "ScanCall",
    "instruction_sets",
    "run_fused",
    "run_maps",
    "run_of_channels",
    "run_scan",
    "status",
]

# Where the build puts the library, in a checkout and in an installed package alike.
LIBRARY = Path(__file__).with_name("_scan.so")
# Forces an instruction set, for tests and measurements.
ISA_VARIABLE = "VIMLRP_CPU_ISA"
# The layout of `ScanCall` and of the calls of the fused operations; kVersion in csrc/scan.h.
_VERSION = 3
_TITLES = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable vectors"}
_REINSTALL = "run `pip install .` again where a C++ compiler (g++ or clang++) is installed"


class Operand(ctypes.Structure):
    """A tensor (B, K, L, ...) by address and strides, counted in elements."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("direction", ctypes.c_int64),
        ("row", ctypes.c_int64),
        ("group", ctypes.c_int64),
    ]


class ScanCall(ctypes.Structure):
    """The arguments of one scan; `ScanCall` in csrc/scan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "directions", "length", "channels")),
        *((name, ctypes.c_int64) for name in ("groups", "state", "adjoint", "shared", "threads")),
        *((name, Operand) for name in ("in_", "dt", "B", "C")),
        ("A", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("A_direction", "A_channel", "A_state")),
        ("D", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("D_direction", "D_channel")),
        *((name, ctypes.c_void_p) for name in ("index", "reverse", "out")),
    ]


def status() -> tuple[bool, str]:
    """Whether the library can run here, and why, or why not, in one sentence."""
    loaded = _load()
    if isinstance(loaded, str):
        return False, loaded
    threads = "" if loaded.vimlrp_threaded() else ", built without OpenMP: one thread"
    try:
        name = list(instruction_sets())[_chosen(os.environ.get(ISA_VARIABLE))]
    except KernelError as problem:
        return False, str(problem)
    return True, f"C++ with {_TITLES[name]}{threads}"


@functools.cache
def instruction_sets() -> dict[str, bool]:
    """The instruction sets in the library, the fastest first, and whether they run here."""
    library = _library()
    sets: dict[str, bool] = {}
    while (name := library.vimlrp_name(len(sets))) is not None:
        sets[name.decode()] = bool(library.vimlrp_runs(len(sets)))
    return sets


def run_scan(call: ScanCall) -> None:
    """Run the scan or its relevance pass.

    Args:
        call: The arguments, whose tensors the caller keeps alive.

    Raises:
        KernelError: If there is no library, or it refuses the instruction set.
    """
    if _library().vimlrp_scan(ctypes.byref(call), _chosen(os.environ.get(ISA_VARIABLE))):
        raise KernelError("The C++ scan refused its instruction set; choose another backend.")


def run_fused(call: ctypes.Structure) -> None:
    """Run one of the fused operations.

    Args:
        call: `FusedCall` of csrc/fused.h, whose tensors the caller keeps alive.

    Raises:
        KernelError: If there is no library, or it refuses the call.
    """
    _run_operation("vimlrp_fused", call)


def run_maps(call: ctypes.Structure) -> None:
    """Run one of the fused operations on maps.

    Args:
        call: `MapCall` of csrc/maps.h, whose tensors the caller keeps alive.

    Raises:
        KernelError: If there is no library, or it refuses the call.
    """
    _run_operation("vimlrp_maps", call)


def _run_operation(entry: str, call: ctypes.Structure) -> None:
    which = _chosen(os.environ.get(ISA_VARIABLE))
    if getattr(_library(), entry)(ctypes.byref(call), ctypes.sizeof(call), which):
        raise KernelError(f"The C++ library refused a fused operation; {_REINSTALL}.")


def run_of_channels() -> int:
    """How many channels of a fused convolution one task takes."""
    return int(_library().vimlrp_run_of_channels(_chosen(os.environ.get(ISA_VARIABLE))))


@functools.cache
def _chosen(forced: str | None) -> int:
    """The place of the fastest instruction set that runs here, or of the forced one."""
    sets = instruction_sets()
    usable = [name for name, runs in sets.items() if runs]
    if forced is not None and forced not in usable:
        raise KernelError(
            f"{ISA_VARIABLE}={forced} names no instruction set that this processor and the C++ "
            f"scan share; give one of {', '.join(usable)}, or unset it."
        )
    return list(sets).index(forced or usable[0])


def _library() -> ctypes.CDLL:
    loaded = _load()
    if isinstance(loaded, str):
        raise KernelError(f"The C++ scan cannot run: {loaded}.")
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none; asked once per process."""
    if not LIBRARY.exists():
        return f"this installation has no compiled library; {_REINSTALL}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.vimlrp_name.restype = ctypes.c_char_p
        library.vimlrp_scan.argtypes = [ctypes.POINTER(ScanCall), ctypes.c_int64]
        operations = library.vimlrp_fused, library.vimlrp_maps
        for function in operations:
            function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        numbers = (library.vimlrp_version, library.vimlrp_call_size, library.vimlrp_threaded)
        by_set = (library.vimlrp_runs, library.vimlrp_run_of_channels)
        for function in (*numbers, *by_set, *operations, library.vimlrp_scan):
            function.restype = ctypes.c_int64
        built = library.vimlrp_version(), library.vimlrp_call_size()
    except (OSError, AttributeError) as problem:
        return f"the compiled library does not load ({problem}); {_REINSTALL}"
    if built != (_VERSION, ctypes.sizeof(ScanCall)):
        return f"the compiled library is of another version; {_REINSTALL}"
    return library
