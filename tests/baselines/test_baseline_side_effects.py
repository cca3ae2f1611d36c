"""The user's model stays as it was, whatever a method does and however it ends."""

import pytest
import torch
from helpers import images, small_vim
from linear_models import ConvolutionalClassifier

from vimlrp.baselines import METHODS

TARGET = torch.tensor([1, 3])
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class PlantedError(Exception):
    pass


def lively(model):
    """In training, one part frozen in evaluation, one parameter without and some with gradients."""
    model.train()
    part = next(model.children())
    part.eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i != 1)
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    return model


def state(model):
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [(id(t), t._version, t.requires_grad, t.detach().clone()) for t in tensors],
        [(id(t.grad), None if t.grad is None else t.grad.clone()) for t in tensors],
        [(id(m), m.training, type(m)) for m in model.modules()],
        [tuple(getattr(m, name)) for m in model.modules() for name in HOOKS],
    )


def same(before, after):
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, tuple | list):
        return len(before) == len(after) and all(map(same, before, after))
    return before == after


@pytest.mark.parametrize("name", METHODS)
def test_a_vim_is_left_as_it_was(name):
    model, x, target = lively(small_vim(drop_path_rate=0.5)), images(), TARGET.clone()
    before, pixels = state(model), x.clone()
    x.requires_grad_()
    METHODS[name](model, x, target)
    assert same(before, state(model))
    assert torch.equal(x, pixels)
    assert x.grad is None
    assert torch.equal(target, TARGET)


@pytest.mark.parametrize(
    "name", [name for name, entry in METHODS.items() if entry.supports(ConvolutionalClassifier())]
)
def test_a_convolutional_model_is_left_as_it_was(name):
    model = lively(ConvolutionalClassifier())
    before = state(model)
    METHODS[name](model, images(2, 16, dtype=torch.float32), TARGET)
    assert same(before, state(model))


def fail(*_args):
    raise PlantedError


def fail_backward(_module, args, output):
    if output.requires_grad:
        output.register_hook(fail)


RUNNING = [name for name in METHODS if name not in ("random", "centre_prior")]
DIFFERENTIATING = [name for name in RUNNING if METHODS[name].backwards]


@pytest.mark.parametrize("name", RUNNING)
def test_a_vim_is_left_as_it_was_when_its_forward_fails(name):
    model = lively(small_vim())
    model.layers[1].mixer.out_proj.register_forward_hook(fail)
    before = state(model)
    with pytest.raises(PlantedError):
        METHODS[name](model, images(), TARGET)
    assert same(before, state(model))


@pytest.mark.parametrize("name", DIFFERENTIATING)
def test_a_vim_is_left_as_it_was_when_its_backward_fails(name):
    model = lively(small_vim())
    model.layers[1].mixer.out_proj.register_forward_hook(fail_backward)
    before = state(model)
    with pytest.raises(PlantedError):
        METHODS[name](model, images(), TARGET)
    assert same(before, state(model))


@pytest.mark.parametrize("name", RUNNING)
def test_stochastic_depth_of_training_has_no_part_in_a_map(name):
    trained = small_vim(drop_path_rate=0.9, global_pool="avg").train()
    maps = METHODS[name](trained, images(), TARGET)
    assert torch.equal(maps, METHODS[name](trained.eval(), images(), TARGET))
