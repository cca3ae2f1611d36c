"""The compiled library: its instruction sets, and when it is not taken."""

import os

import pytest
import torch
from installed import BUILT, COMPILERS, SETS, needs_library

from vimlrp.errors import KernelError
from vimlrp.kernels import backends, compiled
from vimlrp.kernels.backends import choose

CPU = torch.device("cpu")


@pytest.mark.skipif(not COMPILERS, reason="there is no C++ compiler")
@pytest.mark.skipif("VIMLRP_NO_NATIVE" in os.environ, reason="VIMLRP_NO_NATIVE is set")
def test_the_library_is_there_where_a_compiler_is() -> None:
    assert BUILT, compiled.status()[1]
    assert SETS[-1] == "portable"


@needs_library
def test_the_verdict_names_the_instruction_set(isa: str) -> None:
    (verdict,) = (b for b in backends() if b.name == "native")
    assert verdict.usable
    assert verdict.reason.startswith(f"C++ with {compiled._TITLES[isa]}")


@needs_library
def test_an_instruction_set_that_the_processor_lacks_is_never_taken(
    monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    names = list(compiled.instruction_sets())
    lacking = dict.fromkeys(names, False) | {"portable": True}
    monkeypatch.delenv(compiled.ISA_VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "instruction_sets", lambda: lacking)
    assert compiled._chosen(None) == names.index("portable")
    for name in names[:-1]:
        monkeypatch.setenv(compiled.ISA_VARIABLE, name)
        assert compiled.status()[0] is False
        assert choose("auto", CPU, torch.float32) == "cpu"
        with pytest.raises(KernelError, match=f"{compiled.ISA_VARIABLE}={name} names no"):
            choose("native", CPU, torch.float32)
    monkeypatch.undo()


@needs_library
def test_the_library_refuses_what_the_processor_lacks() -> None:
    call = compiled.ScanCall()
    for which in (-1, len(compiled.instruction_sets())):
        assert compiled._library().vimlrp_scan(call, which) == 1


@needs_library
def test_a_library_of_another_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.setattr(compiled, "_VERSION", compiled._VERSION + 1)
    assert compiled.status() == (
        False,
        f"the compiled library is of another version; {compiled._REINSTALL}",
    )
