"""Our MambaVision's logits are the official code's, on weights in which every tensor matters."""

import pytest
import torch
from golden.mambavision_reference import CASES, SMALL, read_mambavision
from golden.reference import relative_error

from vimlrp.sites import Activation, BatchNorm2d, LayerNorm

DOUBLE, SINGLE = 1e-9, 1e-5


def error_of(golden, dtype=torch.float64):
    model, x = golden.model.to(dtype), golden.input.to(dtype)
    with torch.no_grad():
        return relative_error(model(x), golden.logits)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
def test_logits_are_the_official_ones(name, dtype, bound):
    golden = read_mambavision(name)
    assert golden.logits.dtype == torch.float64
    assert error_of(golden, dtype) <= bound


@pytest.mark.parametrize("name", SMALL)
def test_every_tensor_matters_to_the_golden_logits(name):
    golden = read_mambavision(name)
    for key, value in golden.model.double().state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        kept = value.clone()
        value.mul_(1.01)
        error = error_of(golden)
        value.copy_(kept)
        assert error > 1000 * DOUBLE, key
    assert error_of(golden) <= DOUBLE


@pytest.mark.parametrize("kind", [BatchNorm2d, LayerNorm])
def test_a_wrong_eps_would_show(kind):
    golden = read_mambavision("small")
    norms = [module for module in golden.model.modules() if isinstance(module, kind)]
    assert len(norms) > 5
    for norm in norms:
        kept, norm.eps = norm.eps, norm.eps * 2
        assert error_of(golden) > 100 * DOUBLE
        norm.eps = kept


@pytest.mark.parametrize(("name", "other"), [("gelu", "gelu_tanh"), ("gelu_tanh", "gelu")])
def test_the_two_gelus_are_told_apart(name, other):
    golden = read_mambavision("small")
    for module in golden.model.modules():
        if isinstance(module, Activation) and module.name == name:
            swapped = Activation(other)
            module._function = swapped._function
    assert error_of(golden) > 1000 * DOUBLE


def test_the_bias_of_the_step_counts_twice():
    golden = read_mambavision("small")
    for key, value in golden.model.state_dict().items():
        if key.endswith("dt_proj.bias"):
            value.div_(2)
    assert error_of(golden) > 1000 * DOUBLE


def test_the_sequence_is_seen_on_both_sides():
    golden = read_mambavision("small")
    for key, value in golden.model.state_dict().items():
        if "conv1d" in key:
            value[..., 2] = 0
    assert error_of(golden) > 1000 * DOUBLE
