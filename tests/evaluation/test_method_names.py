import pytest
import torch
from evaluation_models import LinearModel
from helpers import images

import vimlrp
from vimlrp.baselines import METHODS
from vimlrp.errors import InputError
from vimlrp.evaluation.methods import (
    CompositeMethod,
    explained_by,
    method_named,
    method_names,
)


@pytest.mark.parametrize("name", ["mambalrp", "gradient_x_input"])
def test_a_composite_is_a_method_of_its_name(vim, name):
    x, target = images(2), torch.tensor([1, 4])
    maps = method_named(name)(vim, x, target)
    expected = vimlrp.explain(vim, x, target=target, composite=name).pixels
    assert maps.dtype == torch.float32
    assert torch.allclose(maps, expected.float())


def test_gradient_times_input_takes_a_model_that_has_no_rules():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 4, 4), torch.nn.PReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 3)
    ).double()
    x, target = images(2), torch.tensor([0, 2])
    leaf = x.clone().requires_grad_()
    logits = model(leaf).gather(1, target[:, None])
    (gradient,) = torch.autograd.grad(logits.sum(), leaf)
    maps = method_named("gradient_x_input")(model, x, target)
    assert torch.allclose(maps, (gradient * x).sum(1).float())
    assert method_named("gradient_x_input") is METHODS["gradient_x_input"]


def test_a_composite_of_ones_own_is_a_method_too(vim):
    x, target = images(1), torch.tensor([2])
    method = CompositeMethod({"base": "mambalrp", "projection": "gamma(0.1)"})
    plain = CompositeMethod()(vim, x, target)
    assert not torch.allclose(method(vim, x, target), plain)
    assert float(method.relevance(vim, x, target).account.target) == pytest.approx(
        float(vim(x)[0, 2].detach())
    )


def test_one_method_follows_the_model_it_is_given(vim, bias_free_vim):
    method, x, target = CompositeMethod(), images(1), torch.tensor([2])
    first = method(vim, x, target)
    assert not torch.allclose(method(bias_free_vim, x, target), first)
    assert torch.equal(method(vim, x, target), first)


def test_every_composite_has_its_name_and_others_are_refused():
    assert set(vimlrp.COMPOSITES) <= set(method_names())
    with pytest.raises(InputError, match=r"no method 'guess'.*mambalrp"):
        method_named("guess")


def test_baselines_are_found_by_name():
    assert set(METHODS) <= set(method_names())
    assert method_named("centre_prior") is METHODS["centre_prior"]


@pytest.mark.parametrize("wrong", [lambda m, x, t: x, lambda m, x, t: None])
def test_what_is_no_map_is_refused(wrong):
    with pytest.raises(InputError, match="must return"):
        explained_by(wrong, LinearModel(), images(1), torch.tensor([0]))
