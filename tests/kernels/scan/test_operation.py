"""The public operation: what it refuses, which backend it takes, what it keeps, compilation."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from problems import error, leaf, order_of, problem
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels import ScanOrder, backends, compiled, selective_scan
from vimlrp.kernels.backends import VARIABLE, choose
from vimlrp.kernels.scan import dispatch

CPU = torch.device("cpu")
CHANGES = [
    ({"dt": (2, 5, 4)}, r"dt has shape \(2, 5, 4\); it must be \(B, K, L, D\)"),
    ({"dt": (2, 2, 0, 4)}, "L and D must be at least 1"),
    ({"dt": (2, 3, 5, 4)}, r"The order has 2 direction\(s\) and dt 3"),
    ({"u": (2, 5, 3)}, r"u has shape \(2, 5, 3\); .* \(2, 5, 4\) or \(2, 2, 5, 4\)"),
    ({"u": (2, 1, 5, 4)}, r"u has shape \(2, 1, 5, 4\)"),
    ({"A": (2, 4)}, r"A has shape \(2, 4\); give \(2, 4, N\)"),
    ({"A": (2, 4, 257)}, "N from 1 to 256"),
    ({"A": (1, 4, 3)}, r"A has shape \(1, 4, 3\); .* \(2, 4, 3\)"),
    ({"B": (2, 2, 5, 2)}, r"B has shape .* \(2, 2, 5, 3\) or \(2, 2, 5, G, 3\)"),
    ({"B": (2, 2, 5, 3, 3)}, "B has 3 group.* do not divide the 4 channels"),
    ({"B": (2, 2, 5, 0, 3)}, "B has 0 group"),
    ({"B": (2, 2, 4, 2, 3)}, r"B has shape \(2, 2, 4, 2, 3\); .* \(2, 2, 5, 2, 3\)"),
    ({"C": (2, 2, 5, 1, 3)}, r"C has shape .* must be \(2, 2, 5, 3\)"),
    ({"D": (4,)}, r"D has shape \(4,\); .* \(2, 4\)"),
]


def arguments() -> dict[str, Tensor]:
    p = problem(order_of("bidirectional", 5), 5)
    return dict(zip(("u", "dt", "A", "B", "C", "D"), p.tensors, strict=True))


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_shapes_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    tensors = arguments() | {name: torch.zeros(shape) for name, shape in change.items()}
    with pytest.raises(KernelError, match=message):
        selective_scan(**tensors, order=ScanOrder.bidirectional())


def test_integers_are_refused() -> None:
    with pytest.raises(KernelError, match=r"C has dtype torch.int64; give float64"):
        selective_scan(
            **arguments() | {"C": torch.zeros(2, 2, 5, 3).long()}, order=ScanOrder((0, 1))
        )


def test_two_devices_are_refused() -> None:
    with pytest.raises(KernelError, match="A lies on meta and u on cpu"):
        selective_scan(
            **arguments() | {"A": torch.zeros(2, 4, 3, device="meta")},
            order=ScanOrder.bidirectional(),
        )


def test_an_order_for_another_length_is_refused() -> None:
    order = ScanOrder.from_index(torch.arange(6).expand(2, 6))
    with pytest.raises(KernelError, match="sequences of 6 positions and dt has 5"):
        selective_scan(**arguments(), order=order)


@pytest.mark.parametrize("grad", ["u", "all", (), ("u", "x"), {"D"}], ids=str)
def test_sets_of_factors_are_refused(grad: str) -> None:
    with pytest.raises(KernelError, match="names no set of factors; give 'input'"):
        selective_scan(**arguments(), order=ScanOrder.bidirectional(), grad=grad)


def test_a_set_of_all_factors_is_the_full_gradient() -> None:
    p = problem(order_of("forward", 5), 5)
    for backend in ("reference", "cpu"):
        named, full = p.run(backend, {"C", "B", "A", "u"}), p.run(backend, "full")
        for g, e in zip(named[1], full[1], strict=True):
            assert g is not None
            assert torch.equal(g, e)


def test_unknown_backends_are_refused_with_the_choices() -> None:
    with pytest.raises(KernelError, match=r"no backend 'cuda'.*reference \(usable\), cpu \(us"):
        selective_scan(**arguments(), order=ScanOrder.bidirectional(), backend="cuda")


def test_the_cpu_backend_refuses_other_devices() -> None:
    with pytest.raises(KernelError, match="inputs lie on meta, and it needs them on the CPU"):
        choose("cpu", torch.device("meta"), torch.float32)


def test_triton_refuses_float64_and_missing_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(KernelError, match="float64, and its state is float32"):
        choose("triton", CPU, torch.float64)
    assert choose("triton", CPU, torch.float32) == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelError, match="PyTorch sees no CUDA GPU"):
        choose("triton", CPU, torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(KernelError, match="inputs lie on cpu, and it needs them on a CUDA GPU"):
        choose("triton", CPU, torch.float32)
    assert choose("auto", torch.device("cuda"), torch.float32) == "triton"
    assert choose("auto", torch.device("cuda"), torch.float64) == "reference"


def test_auto_goes_by_device_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose("auto", CPU, torch.float32) == ("native" if compiled.status()[0] else "cpu")
    assert choose("auto", CPU, torch.float64) == "cpu"
    assert choose("auto", torch.device("cuda"), torch.float32) == "reference"
    verdicts = {b.name: (b.usable, b.reason) for b in backends()}
    assert verdicts["triton"] == (
        False,
        "the package triton is not installed; run `pip install triton`",
    )
    with pytest.raises(KernelError, match="pip install triton"):
        choose("triton", torch.device("cuda"), torch.float32)


def test_the_environment_decides_what_the_argument_leaves_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "reference")
    assert choose("auto", CPU, torch.float32) == "reference"
    assert choose("cpu", CPU, torch.float32) == "cpu"
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(KernelError, match="no backend 'fast'"):
        choose("auto", CPU, torch.float32)


def test_too_many_directions_for_triton() -> None:
    triton = pytest.importorskip("vimlrp.kernels.scan.triton", reason="Triton is not installed")
    p = problem(ScanOrder((False,) * 32), 2, dtype=torch.float32)
    u, dt, A, B, C, D = p.tensors
    with pytest.raises(KernelError, match="32 directions; it takes up to 31"):
        triton.forward(u, dt, A, B.unsqueeze(3), C.unsqueeze(3), D, None, p.order.reverse)


def test_the_relevance_pass_keeps_neither_input_nor_states() -> None:
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    p = problem(order_of("bidirectional", 5), 5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = selective_scan(*p.tensors, order=p.order, grad="input", backend="cpu")
    names = {
        x.data_ptr(): name
        for name, x in zip(["u", "dt", "A", "B", "C", "D"], p.tensors, strict=True)
    }
    assert {names.get(x.data_ptr()) for x in kept} == {"dt", "A", "B", "C", "D"}
    assert y.grad_fn is not None


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_inputs_are_left_alone(backend: str) -> None:
    p = problem(order_of("indexed", 5), 5)
    before = [x.detach().clone() for x in p.tensors]
    p.run(backend)
    assert all(torch.equal(x, b) for x, b in zip(p.tensors, before, strict=True))


def test_operators_pass_opcheck() -> None:
    p = problem(order_of("indexed", 5), 5, groups=2, skip=False)
    index, reverse = p.order.index, list(p.order.reverse)
    tensors = (*p.tensors, None)
    dy = torch.randn_like(p.tensors[1])
    for factors in ("u", "uABC", "BC"):
        torch.library.opcheck(dispatch.scan, (*tensors, index, reverse, factors, "cpu"))
    constants = tuple(None if x is None else x.detach() for x in tensors)
    for shared in (True, False):
        torch.library.opcheck(
            dispatch.relevance, (dy, *constants[1:], index, reverse, shared, "cpu")
        )
    torch.library.opcheck(dispatch.gradient, (dy, *constants, index, reverse, "uABC", "cpu"))


@pytest.mark.parametrize("grad", ["full", "input"])
def test_compiles_without_a_break(grad: str) -> None:
    p = problem(order_of("bidirectional", 5), 5, shared=True)

    def scan(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, order=p.order, grad=grad)

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    again = [leaf(x.detach()) for x in p.tensors]
    y, z = scan(*p.tensors), compiled(*again)
    assert error(z.detach(), y.detach()) < 1e-12
    (du,), (dz,) = (
        torch.autograd.grad(y.sum(), p.tensors[:1]),
        torch.autograd.grad(z.sum(), again[:1]),
    )
    assert error(dz, du) < 1e-12


def test_importing_the_kernels_does_not_import_their_triton_programs() -> None:
    code = "import sys, vimlrp.kernels; sys.exit('vimlrp.kernels.scan.triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
