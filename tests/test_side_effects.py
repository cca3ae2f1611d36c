"""The user's model stays as it was, whatever happens, and explanations do not disturb others."""

import copy
import gc
import threading
from contextlib import suppress

import pytest
import torch
from helpers import images, random, relative_error, small_vim
from torch import nn

import vimlrp
from vimlrp.errors import VimLRPError


class PlantedError(Exception):
    pass


def fail(*_args):
    raise PlantedError


def failing_forward(model):
    model.layers[1].mixer.forward = fail
    vimlrp.explain(model, images())


def failing_hook(model):
    model.layers[1].register_forward_hook(fail)
    vimlrp.explain(model, images(), record=["layers.0", "layers.1"])


def failing_after_the_verdict(model):
    vimlrp.explain(model, images())
    calls = []

    def second(_module, _args, output):
        calls.append(1)
        if len(calls) > 1:
            raise PlantedError
        return output

    model.layers[1].register_forward_hook(second)
    vimlrp.explain(model, images(), record=["layers.0"])


def failing_target(model):
    vimlrp.explain(model, images(), target=fail)


def failing_check(model):
    vimlrp.check_conservation(model, images(), target=fail)


def failing_backward(model):
    def watch(_module, _args, output):
        output.register_hook(fail)

    model.norm_f.register_forward_hook(watch)
    vimlrp.explain(model, images())


def refused_layer(model):
    vimlrp.explain(model, images(), record=["layers.0", "nowhere"])


def refused_target(model):
    vimlrp.explain(model, images(), target=99)


def refused_composite(model):
    vimlrp.explain(model, images(), composite={"layers.7.*": "zero"})


def succeeding(model):
    vimlrp.explain(model, images(), record=["layers.0"])
    vimlrp.check_conservation(model, images())


COURSES = [
    succeeding,
    failing_forward,
    failing_hook,
    failing_after_the_verdict,
    failing_target,
    failing_check,
    failing_backward,
    refused_layer,
    refused_target,
    refused_composite,
]


def state_of(model):
    """Everything about a model that an explanation must not change."""
    return {
        "flags": {name: module.training for name, module in model.named_modules()},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "needs": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "identities": {name: id(p) for name, p in model.named_parameters()},
        "types": {name: (p.dtype, p.device) for name, p in model.named_parameters()},
    }


def mixed_model():
    """Mixed training flags, some frozen parameters, some kept gradients, a buffer."""
    model = small_vim()
    model.train()
    model.layers[0].mixer.eval()
    model.head.eval()
    model.register_buffer("counter", torch.tensor(3))
    for parameter in model.layers[0].parameters():
        parameter.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    return model


@pytest.mark.parametrize("course", COURSES)
def test_the_model_is_left_as_it_was(course):
    model = mixed_model()
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    grad_mode = torch.is_grad_enabled()
    patched = {"failing_forward": 1}.get(course.__name__, 0)
    if course is succeeding:
        course(model)
    else:
        with pytest.raises((PlantedError, VimLRPError)):
            course(model)
    if patched:
        del model.layers[1].mixer.forward
    for module in model.modules():  # those of the course itself
        for key, hook in list(module._forward_hooks.items()):
            if hook.__module__ == __name__:
                del module._forward_hooks[key]
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled() == grad_mode
    assert (model.head.weight.grad == 7).all()
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


@pytest.mark.parametrize("course", COURSES)
def test_a_plain_forward_afterwards_is_plain(course):
    model = small_vim()
    x = images()
    expected = model(x)
    with suppress(PlantedError, VimLRPError):
        course(model)
    model = _unplanted(model)
    logits = model(x)
    assert torch.equal(logits, expected)
    logits.sum().backward()
    assert model.head.weight.grad is not None


def _unplanted(model):
    vars(model.layers[1].mixer).pop("forward", None)
    for module in model.modules():
        module._forward_hooks.clear()
    return model


def test_the_users_hooks_stay_and_run(vim):
    model, calls = copy.deepcopy(vim), []
    handle = model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    vimlrp.explain(model, images(), record=["layers.0"])
    assert calls
    assert list(model.layers[0]._forward_hooks) == [handle.id]


def test_an_explanation_in_training_mode_is_that_in_evaluation_mode():
    model = small_vim(drop_rate=0.5, pos_drop_rate=0.5, drop_path_rate=0.5, depth=3)
    expected = vimlrp.explain(model, images())
    model.train()
    ours = vimlrp.explain(model, images())
    assert torch.equal(ours.pixels, expected.pixels)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("rule", ["gamma", "zero", "flat", "box"])
def test_the_users_grad_mode_does_not_matter(vim, mode, rule):
    composite = {"patch_embedding": rule}
    expected = vimlrp.explain(vim, images(), composite=composite, record=["layers.0"])
    with mode():
        x = images()
        ours = vimlrp.explain(vim, x, composite=composite, record=["layers.0"])
        conservation = vimlrp.check_conservation(vim, x, composite=composite)
    assert torch.equal(ours.pixels, expected.pixels)
    assert torch.equal(ours.recorded["layers.0"].relevance, expected.recorded["layers.0"].relevance)
    assert conservation.holds


def test_results_carry_no_graph(vim):
    relevance = vimlrp.explain(vim, images().requires_grad_(), record=["layers.0"])
    conservation = vimlrp.check_conservation(vim, images())
    record = relevance.recorded["layers.0"]
    tensors = [relevance.pixels, relevance.patches, relevance.tokens, relevance.logits]
    tensors += [record.activation, record.relevance, relevance.account.target]
    tensors += [*relevance.account.parts.values(), conservation.target]
    tensors += [x for c in conservation.cuts for x in (c.relevance, c.absorbed)]
    tensors += [x for s in conservation.sites for x in (s.received, s.passed, s.absorbed)]
    assert not any(x.requires_grad for x in tensors)


def test_the_users_tensor_is_left_as_it_was(vim):
    x = images()
    kept = x.clone()
    leaf = x.requires_grad_()
    vimlrp.explain(vim, leaf)
    assert torch.equal(leaf.detach(), kept)
    assert leaf.grad is None
    assert leaf.requires_grad


def test_frozen_parameters_give_the_same():
    model = small_vim()
    expected = vimlrp.explain(model, images(), composite="gradient_x_input").pixels
    default = vimlrp.explain(model, images()).pixels
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(vimlrp.explain(model, images()).pixels, default)
    assert torch.equal(
        vimlrp.explain(model, images(), composite="gradient_x_input").pixels, expected
    )


@pytest.mark.parametrize("flag", [True, False])
def test_two_threads_with_two_composites_do_not_disturb_each_other(flag):
    model = small_vim(dtype=torch.float32, drop_rate=0.5)
    model.train(flag)
    x = images(2, dtype=torch.float32)
    composites = ("mambalrp", "gradient_x_input")
    expected = {c: vimlrp.explain(model, x, composite=c, record=["layers.0"]) for c in composites}
    start, results = threading.Barrier(2), {c: [] for c in composites}

    def work(composite):
        explainer = vimlrp.Explainer(model, composite)
        start.wait()
        for _ in range(20):
            results[composite].append(explainer(x, record=["layers.0"]))

    threads = [threading.Thread(target=work, args=(c,)) for c in composites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for composite in composites:
        assert len(results[composite]) == 20
        for ours in results[composite]:
            assert relative_error(ours.tokens, expected[composite].tokens) < 1e-6
            assert (
                relative_error(
                    ours.recorded["layers.0"].relevance,
                    expected[composite].recorded["layers.0"].relevance,
                )
                < 1e-6
            )
    assert all(module.training == flag for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_thread_that_fails_does_not_disturb_another():
    model = small_vim(dtype=torch.float32)
    model.train()
    x = images(2, dtype=torch.float32)
    expected = vimlrp.explain(model, x).pixels
    inside, go_on = threading.Event(), threading.Event()
    results = []

    def slow_target(logits):
        inside.set()
        go_on.wait(10)
        return logits[:, 0]

    def slow():
        results.append(vimlrp.explain(model, x, target=slow_target))

    thread = threading.Thread(target=slow)
    thread.start()
    inside.wait(10)
    with pytest.raises(VimLRPError):
        vimlrp.explain(model, x, target=99)
    assert not model.training  # still held by the first
    assert relative_error(vimlrp.explain(model, x).pixels, expected) < 1e-6
    go_on.set()
    thread.join()
    assert len(results) == 1
    assert all(module.training for module in model.modules())


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("repeat", ["explain", "check", "refusal", "error"])
def test_memory_does_not_grow(vim, repeat):
    refused = copy.deepcopy(vim)
    refused.head = nn.Sequential(refused.head, nn.Softmax(-1))
    calls = {
        "explain": lambda: vimlrp.explain(vim, images(), record=["layers.0"]),
        "check": lambda: vimlrp.check_conservation(vim, images()),
        "refusal": lambda: vimlrp.explain(refused, images()),
        "error": lambda: vimlrp.explain(vim, images(), target=fail),
    }

    def run(times):
        for _ in range(times):
            with suppress(PlantedError, VimLRPError):
                calls[repeat]()

    run(2)
    before = tensors_alive()
    run(30)
    assert tensors_alive() <= before


def test_a_graph_is_freed_without_the_garbage_collector(vim):
    vimlrp.explain(vim, images())
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        for _ in range(5):
            vimlrp.explain(vim, images(), record=["layers.0"])
        after = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    finally:
        gc.enable()
    assert after <= before


def test_an_explanation_under_autocast_adds_up(registered_vim):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        account = vimlrp.explain(registered_vim, images(4, 64, dtype=torch.float32)).account
    assert (account.residue / account.target).abs().max() < 3e-2


def test_a_direction_made_in_inference_mode_is_taken(vim):
    direction = random(16)
    expected = vimlrp.explain(vim, images(), start=("layers.0", direction)).pixels
    with torch.inference_mode():
        ours = vimlrp.explain(vim, images(), start=("layers.0", random(16))).pixels
    assert torch.equal(ours, expected)
