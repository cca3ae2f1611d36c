"""Our logits are the official code's, on weights in which every branch matters."""

import pytest
import torch
from golden.reference import FULL, SMALL, read, relative_error

DOUBLE, SINGLE = 1e-9, 1e-5
# A token at the start has no state before it: the last forward scan never decays for it.
IDLE = {"head": "layers.1.mixer.A_log"}


def error_of(golden, dtype):
    model, x = golden.to(dtype)
    with torch.no_grad():
        return relative_error(model(x), golden.logits)


@pytest.mark.parametrize("name", [*SMALL, *FULL])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
def test_logits_are_the_official_ones(name, dtype, bound):
    golden = read(name)
    assert golden.logits.dtype == torch.float64
    assert error_of(golden, dtype) <= bound


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_matters_to_the_golden_logits(name):
    golden = read(name)
    model, _ = golden.to(torch.float64)
    parameters = dict(model.named_parameters())
    parameters.pop(IDLE.get(name), None)
    for key, parameter in parameters.items():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.001)
            error = error_of(golden, torch.float64)
            parameter.copy_(kept)
        assert error > 1000 * DOUBLE, key
    assert error_of(golden, torch.float64) <= DOUBLE


@pytest.mark.parametrize("name", [*SMALL, *FULL])
def test_a_wrong_eps_would_show(name):
    golden = read(name)
    for module in golden.model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-6
    assert error_of(golden, torch.float64) > 100 * DOUBLE


def test_directions_divided_or_not_are_told_apart():
    golden = read("undivided")
    for layer in golden.model.layers:
        layer.mixer.divide_out = True
    assert error_of(golden, torch.float64) > 1e-3


def test_wrong_place_of_the_class_token_shows():
    golden, other = read("head"), read("none")
    other.model.global_pool = "avg"
    with torch.no_grad():
        features = golden.model.double().forward_features(golden.input.double())
        at_end = golden.model.head(features[:, -1])
    assert relative_error(at_end, golden.logits) > 1e-3
