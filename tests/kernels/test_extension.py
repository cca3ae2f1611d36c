"""mamba-ssm's extension: what is said where it is missing, and what it is chosen for."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from problems import order_of, problem

from vimlrp.errors import KernelError
from vimlrp.kernels import backends, extension, selective_scan
from vimlrp.kernels.backends import choose

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_without_the_extension_the_refusal_says_how_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = r'pip install "vimlrp\[mamba-ssm\]" --no-build-isolation'
    with pytest.raises(KernelError, match=line):
        choose("mamba_ssm", GPU, torch.float32)
    p = problem(order_of("forward", 3), 3, dtype=torch.float32)
    with pytest.raises(KernelError, match=line):
        selective_scan(*p.tensors, order=p.order, backend="mamba_ssm")
    (verdict,) = (b for b in backends() if b.name == "mamba_ssm")
    assert not verdict.usable


def test_an_extension_that_does_not_import_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"{extension.EXTENSION}.py").write_text("raise ImportError('another ABI')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, extension.EXTENSION, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    extension._imports.cache_clear()
    with pytest.raises(KernelError, match=r"does not import \(another ABI\)"):
        choose("mamba_ssm", GPU, torch.float32)
    extension._imports.cache_clear()


def test_what_it_takes_and_that_auto_prefers_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelError, match="PyTorch sees no CUDA GPU"):
        choose("mamba_ssm", GPU, torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(extension, "_imports", lambda: (True, "there"))
    assert choose("mamba_ssm", GPU, torch.float32) == "mamba_ssm"
    with pytest.raises(KernelError, match="inputs lie on cpu, and it needs them on a CUDA GPU"):
        choose("mamba_ssm", CPU, torch.float32)
    with pytest.raises(KernelError, match="float64, and its state is float32"):
        choose("mamba_ssm", GPU, torch.float64)
    monkeypatch.delenv("VIMLRP_BACKEND", raising=False)
    assert choose("auto", GPU, torch.float32) == "triton"
    monkeypatch.setenv("VIMLRP_BACKEND", "mamba_ssm")
    assert choose("auto", GPU, torch.float32) == "mamba_ssm"
