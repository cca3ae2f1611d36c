"""VMamba's logits are the official code's, on weights in which every parameter matters."""

import pytest
import torch
from golden.reference import relative_error
from golden.vmamba_reference import CASES, SMALL, read_vmamba

DOUBLE, SINGLE = 1e-9, 1e-5
MATTER = ("v2", "v0")


def error_of(golden, dtype):
    model, x = golden.model.to(dtype), golden.input.to(dtype)
    with torch.no_grad():
        return relative_error(model(x), golden.logits)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
def test_logits_are_the_official_ones(name, dtype, bound):
    golden = read_vmamba(name)
    assert golden.logits.dtype == torch.float64
    assert golden.logits.std() > 0.1
    assert error_of(golden, dtype) <= bound


@pytest.mark.parametrize("name", MATTER)
def test_every_parameter_matters_to_the_golden_logits(name):
    golden = read_vmamba(name)
    for key, parameter in golden.model.double().named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.01)
            error = error_of(golden, torch.float64)
            parameter.copy_(kept)
        assert error > 1000 * DOUBLE, key
    assert error_of(golden, torch.float64) <= DOUBLE


@pytest.mark.parametrize("name", MATTER)
def test_every_route_matters_to_the_golden_logits(name):
    golden = read_vmamba(name)
    op = golden.model.double().layers[0].blocks[0].op
    for key in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
        parameter = op.get_parameter(key)
        kept = parameter.detach().clone()
        for route in range(4):
            with torch.no_grad():
                parameter.unflatten(0, (4, -1))[route].mul_(1.01)
                error = error_of(golden, torch.float64)
                parameter.copy_(kept)
            assert error > 1000 * DOUBLE, (key, route)


@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_eps_would_show(name):
    golden = read_vmamba(name)
    for module in golden.model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-6
    assert error_of(golden, torch.float64) > 100 * DOUBLE


@pytest.mark.parametrize("name", ["v2 not square", "v0 not square"])
def test_rows_and_columns_are_told_apart(name):
    golden = read_vmamba(name)
    swap = torch.tensor([1, 0, 3, 2])
    with torch.no_grad():
        for key, parameter in golden.model.named_parameters():
            if key.endswith(("x_proj_weight", "dt_projs_weight", "dt_projs_bias")):
                parameter.copy_(parameter[swap])
    assert error_of(golden, torch.float64) > 1e-3
