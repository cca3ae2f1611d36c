"""Explaining a foreign model leaves it as it was, follows what becomes of it, and lets it go."""

import copy
import gc
import threading
import weakref
from functools import partial

import pytest
import timm
import torch
from helpers import images, relative_error
from test_side_effects import PlantedError, state_of
from timm_models import family, vit
from torch import nn

import vimlrp
from vimlrp.errors import VimLRPError

NAMES = ["test_resnet", "test_vit", "test_mambaout", "efficientvim_m1"]


def failing(model, x):
    def fail(_logits):
        raise PlantedError

    vimlrp.explain(model, x, target=fail)


COURSES = {
    "explained": lambda model, x: vimlrp.explain(model, x),
    "checked": lambda model, x: vimlrp.check_conservation(model, x),
    "failing": failing,
    "refused": lambda model, x: vimlrp.explain(model, x, target=99),
    "misnamed": lambda model, x: vimlrp.explain(model, x, record=["nowhere"]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("course", COURSES)
def test_the_model_is_left_as_it_was(name, course):
    model, size = family(name)
    model.train()
    list(model.modules())[-1].eval()
    next(model.parameters()).requires_grad_(False)
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    types = {key: type(module) for key, module in model.named_modules()}
    if course in ("explained", "checked"):
        COURSES[course](model, images(2, size))
    else:
        with pytest.raises((PlantedError, VimLRPError)):
            COURSES[course](model, images(2, size))
    assert state_of(model) == before
    assert {key: type(module) for key, module in model.named_modules()} == types
    after = model.state_dict()
    assert all(torch.equal(after[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", NAMES)
def test_no_memory_is_copied(name):
    model, _ = family(name)
    wrapped = vimlrp.wrap(model)
    ours, theirs = dict(wrapped.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[key] is theirs[key] for key in theirs)
    ours, theirs = dict(wrapped.named_buffers()), dict(model.named_buffers())
    assert all(ours[key] is theirs[key] for key in theirs)
    assert wrapped.state_dict().keys() == model.state_dict().keys()


def test_training_mode_does_not_matter():
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(
            "test_resnet", num_classes=5, drop_rate=0.5, drop_path_rate=0.5
        ).double()
    model.eval()
    expected = vimlrp.explain(model, images(2, 36)).pixels
    model.train()
    assert torch.equal(vimlrp.explain(model, images(2, 36)).pixels, expected)
    assert all(module.training for module in model.modules())


def test_later_training_is_seen():
    model, size = family("test_resnet")
    x = images(2, size)
    wrapped = vimlrp.wrap(model)
    before = vimlrp.explain(model, x).logits
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimiser.step()
    model.eval()
    relevance = vimlrp.explain(model, x)
    assert vimlrp.wrap(model) is wrapped
    assert relative_error(relevance.logits, model(x)) < 1e-9
    assert relative_error(relevance.logits, before) > 1e-3


def test_a_model_that_moves_to_another_type_is_followed():
    model, size = family("test_resnet")
    wrapped = vimlrp.wrap(model)
    model.float()
    x = images(2, size, dtype=torch.float32)
    assert relative_error(vimlrp.explain(model, x).logits, model(x)) < 1e-5
    assert vimlrp.wrap(model) is wrapped


def replaced_head(model):
    model.reset_classifier(3)
    model.double()


def replaced_activation(model):
    model.layer1[0].act1 = nn.SiLU()


def replaced_parameter(model):
    model.fc.weight = nn.Parameter(torch.ones_like(model.fc.weight))


def changed_attribute(model):
    model.layer1[0].conv1.padding = (0, 0)
    model.layer1[0].conv2.padding = (2, 2)


@pytest.mark.parametrize(
    "change", [replaced_head, replaced_activation, replaced_parameter, changed_attribute]
)
def test_changes_of_a_model_are_seen(change):
    model, size = family("test_resnet")
    x = images(2, size)
    explainer = vimlrp.Explainer(model)
    before = explainer(x).logits
    change(model)
    relevance = explainer(x)
    assert relative_error(relevance.logits, model(x)) < 1e-9
    assert before.shape != relevance.logits.shape or relative_error(before, relevance.logits) > 1e-3
    assert (relevance.account.residue.abs() / relevance.account.target.abs()).max() < 1e-9


def test_two_explanations_wrap_once():
    model, size = family("test_vit")
    wrapped = vimlrp.wrap(model)
    vimlrp.explain(model, images(1, size))
    vimlrp.explain(model, images(2, size), composite="gradient_x_input")
    assert vimlrp.wrap(model) is wrapped
    assert vimlrp.wrap(wrapped) is wrapped


def test_the_users_hooks_run_and_stay():
    model, size = family("test_resnet")
    calls = []
    handle = model.layer1.register_forward_hook(lambda *_: calls.append(1))
    vimlrp.explain(model, images(1, size), record=["layer1"])
    assert calls
    assert list(model.layer1._forward_hooks) == [handle.id]
    handle.remove()
    calls.clear()
    vimlrp.explain(model, images(1, size))
    assert not calls


def test_two_threads_explain_with_one_model():
    model, size = family("test_resnet")
    model.train()
    x = images(2, size)
    composites = ("mambalrp", "gradient_x_input")
    expected = {c: vimlrp.explain(model, x, composite=c).pixels for c in composites}
    fresh = copy.deepcopy(model)
    start, results = threading.Barrier(2), {c: [] for c in composites}

    def work(composite):
        start.wait()
        for _ in range(10):
            results[composite].append(vimlrp.explain(fresh, x, composite=composite).pixels)

    threads = [threading.Thread(target=work, args=(c,)) for c in composites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for composite in composites:
        assert len(results[composite]) == 10
        assert all(relative_error(r, expected[composite]) < 1e-9 for r in results[composite])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_freed(name):
    model, size = family(name)
    vimlrp.explain(model, images(1, size))
    alive = [
        weakref.ref(model),
        weakref.ref(vimlrp.wrap(model)),
        weakref.ref(next(model.children())),
    ]
    del model
    gc.collect()
    assert [one() for one in alive] == [None] * 3


def touch(model, *_args):
    """A hook that holds the model it hangs on."""
    model.training  # noqa: B018


def test_a_model_with_hooks_is_freed():
    model, size = family("test_resnet")
    model.layer1.register_forward_hook(partial(touch, model))
    vimlrp.explain(model, images(1, size))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_a_wrapped_model_can_be_copied_and_trained():
    wrapped = copy.deepcopy(vimlrp.wrap(family("test_vit")[0]))
    x = images(2, 32)
    expected = vimlrp.explain(wrapped, x).pixels
    assert torch.equal(vimlrp.explain(family("test_vit")[0], x).pixels, expected)
    wrapped.train()
    wrapped(x).sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters())


def test_bound_methods_and_lists_of_modules_are_those_of_the_clone():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 5)
            self.act = nn.GELU()
            self.chain = [self.conv, self.act]
            self.finish = self.classify

        def classify(self, x):
            return self.fc(x.mean((2, 3)))

        def forward(self, x):
            for layer in self.chain:
                x = layer(x)
            return self.finish(x)

    model = Listed().double()
    relevance = vimlrp.explain(model, images(2, 6))
    assert (relevance.account.residue.abs() / relevance.account.target.abs()).max() < 1e-9


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "resnetv2_50", "efficientvim_m1"])
def test_the_layout_in_memory_does_not_matter(name, memory_format):
    model, size = family(name)
    x = images(2, size)
    expected = vimlrp.explain(model, x)
    model = model.to(memory_format=memory_format)
    ours = vimlrp.explain(model, x.to(memory_format=memory_format))
    assert relative_error(ours.pixels, expected.pixels) < 1e-9
    assert relative_error(ours.logits, expected.logits) < 1e-9


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout", "efficientvim_m1"])
def test_an_explanation_in_half_precision_adds_up(name):
    model, size = family(name, torch.bfloat16)
    account = vimlrp.explain(model, images(2, size, dtype=torch.bfloat16)).account
    scale = torch.stack([account.target, *account.parts.values()]).abs().amax(0)
    assert (account.residue.abs() / scale).max() < 5e-2


def test_a_vit_explained_in_inference_mode_is_the_same():
    model, x = vit(), images(2, 24)
    expected = vimlrp.explain(vit(), x).pixels
    with torch.inference_mode():
        assert torch.equal(vimlrp.explain(model, x).pixels, expected)
    assert torch.equal(vimlrp.explain(model, x).pixels, expected)
