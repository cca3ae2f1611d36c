"""`record` and `start`: the relevance of layers, and relevance that begins at a layer."""

import pytest
import torch
from helpers import images, random, relative_error, small_vim

import vimlrp
from vimlrp.errors import InputError
from vimlrp.layers import alias

COMPLETE = ["token_sum", "layers.0", "layers.1", "norm_f", "head"]


def captured(model, x, names):
    """The outputs of modules in a plain forward pass, streams of a block summed."""
    seen = {}

    def keeper(name):
        def keep(_module, _args, output):
            seen[name] = sum(output) if isinstance(output, tuple) else output

        return keep

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keeper(name)) for name in names]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def gradient_at(model, x, name, target):
    """Relevance of a layer by the plain gradient: activation times d logit / d activation."""
    kept = {}

    def replace(_module, _args, output):
        streams = output if isinstance(output, tuple) else (output,)
        kept["streams"] = [s.detach().requires_grad_() for s in streams]
        return tuple(kept["streams"]) if isinstance(output, tuple) else kept["streams"][0]

    handle = dict(model.named_modules())[name].register_forward_hook(replace)
    logits = model(x)
    handle.remove()
    gradients = torch.autograd.grad(logits[:, target].sum(), kept["streams"])
    return sum(s.detach() * g for s, g in zip(kept["streams"], gradients, strict=True))


@pytest.mark.parametrize("composite", ["mambalrp", "gradient_x_input"])
def test_recorded_activations_are_those_of_a_plain_forward(vim, composite):
    x = images()
    names = [*COMPLETE, "patch_embed", "layers.0.mixer", "layers.1.mixer.act", "layers.0.norm"]
    recorded = vimlrp.explain(vim, x, composite=composite, record=names).recorded
    assert list(recorded) == names
    for name, expected in captured(vim, x, names).items():
        assert relative_error(recorded[name].activation, expected) < 1e-13, name


@pytest.mark.parametrize(
    "name", [*COMPLETE, "layers.0.mixer", "layers.0.norm", "layers.1.mixer.act"]
)
def test_recorded_relevance_of_the_plain_gradient_is_that_of_autograd(vim, name):
    x = images()
    ours = vimlrp.explain(vim, x, target=1, composite="gradient_x_input", record=[name])
    assert relative_error(ours.recorded[name].relevance, gradient_at(vim, x, name, 1)) < 1e-10


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_layer_sums_to_the_target_without_biases(bias_free_vim, name):
    relevance = vimlrp.explain(bias_free_vim, images(), record=[name])
    total = relevance.recorded[name].relevance.flatten(1).sum(1)
    assert relative_error(total, relevance.account.target) < 1e-9


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_layer_and_later_absorptions_sum_to_the_target(vim, name):
    x = images()
    relevance = vimlrp.explain(vim, x, record=[name])
    conservation = vimlrp.check_conservation(vim, x)
    absorbed = next(cut.absorbed for cut in conservation.cuts if cut.name == name)
    total = relevance.recorded[name].relevance.flatten(1).sum(1) + absorbed
    assert relative_error(total, relevance.account.target) < 1e-9


def test_recorded_tokens_are_the_tokens(vim):
    relevance = vimlrp.explain(vim, images(), record=["token_sum"])
    assert (
        relative_error(relevance.recorded["token_sum"].relevance.sum(-1), relevance.tokens) < 1e-13
    )


def test_relevance_of_the_head_is_the_target_logit(vim):
    relevance = vimlrp.explain(vim, images(), target=3, record=["head", ""])
    expected = torch.zeros(2, 5).double()
    expected[:, 3] = relevance.logits[:, 3]
    for name in ("head", ""):
        assert relative_error(relevance.recorded[name].relevance, expected) < 1e-13


@pytest.mark.parametrize("name", ["layers.0.mixer.x_proj", "layers.0.mixer.step"])
def test_what_the_rules_hold_constant_has_no_relevance(vim, name):
    record = vimlrp.explain(vim, images(), record=[name]).recorded[name]
    assert record.activation.abs().max() > 0
    assert record.relevance.abs().max() == 0


def test_recording_changes_nothing(vim):
    expected = vimlrp.explain(vim, images())
    ours = vimlrp.explain(vim, images(), record=["patch_embed", "layers.0", "layers.0.norm"])
    assert torch.equal(ours.pixels, expected.pixels)


@pytest.mark.parametrize("how", ["record", "start"])
def test_unknown_layer_is_refused_with_names_like_it(vim, how):
    option = {"record": ["layer.1"]} if how == "record" else {"start": ("layer.1", random(16))}
    with pytest.raises(InputError, match=r"no layer 'layer\.1'.*layers\.1"):
        vimlrp.explain(vim, images(), **option)


@pytest.mark.parametrize("how", ["record", "start"])
@pytest.mark.parametrize("name", ["layers", "layers.0.residual"])
def test_layer_that_does_not_run_is_refused(vim, name, how):
    option = {"record": [name]} if how == "record" else {"start": (name, random(16))}
    with pytest.raises(InputError, match=f"{name}.*did not run"):
        vimlrp.explain(vim, images(), **option)


@pytest.mark.parametrize("name", ["token_sum", "layers.0", "layers.1", "norm_f"])
def test_start_explains_the_product_of_activation_and_direction(vim, name):
    x, direction = images(), random(16)
    relevance = vimlrp.explain(vim, x, start=(name, direction), record=[name])
    expected = captured(vim, x, [name])[name] * direction
    assert relative_error(relevance.recorded[name].relevance, expected) < 1e-12
    assert relative_error(relevance.account.target, expected.flatten(1).sum(1)) < 1e-12
    assert relevance.target is None


@pytest.mark.parametrize("name", ["layers.0", "layers.1", "norm_f"])
def test_relevance_is_conserved_below_the_start(bias_free_vim, name):
    names = COMPLETE[: COMPLETE.index(name)]
    relevance = vimlrp.explain(bias_free_vim, images(), start=(name, random(16)), record=names)
    for below in names:
        total = relevance.recorded[below].relevance.flatten(1).sum(1)
        assert relative_error(total, relevance.account.target) < 1e-9, below
    assert relative_error(relevance.tokens.sum(1), relevance.account.target) < 1e-9


def test_account_below_the_start_holds_with_biases(vim):
    relevance = vimlrp.explain(vim, images(), start=("layers.0", random(16)))
    assert relevance.account.residue.abs().max() < 1e-12
    assert "bias: head" not in relevance.account.parts


def test_start_is_linear_in_the_direction(vim):
    a, b = random(16, seed=1), random(16, seed=2)
    one, two, both = (
        vimlrp.explain(vim, images(), start=("layers.0", d)).pixels for d in (a, b, 2 * a - 3 * b)
    )
    assert relative_error(both, 2 * one - 3 * two) < 1e-11


def test_start_at_the_head_is_the_class(vim):
    x, direction = images(), torch.eye(5).double()[2]
    expected = vimlrp.explain(vim, x, target=2)
    ours = vimlrp.explain(vim, x, start=("head", direction))
    assert relative_error(ours.pixels, expected.pixels) < 1e-12


def test_layers_above_the_start_receive_nothing(vim):
    relevance = vimlrp.explain(vim, images(), start=("layers.0", random(16)), record=["norm_f"])
    assert relevance.recorded["norm_f"].relevance.abs().max() == 0


def test_direction_may_differ_for_each_token_and_sample(vim):
    x = images(3)
    direction = random(3, 17, 16)
    together = vimlrp.explain(vim, x, start=("layers.0", direction))
    for i in range(3):
        alone = vimlrp.explain(vim, x[i], start=("layers.0", direction[i]))
        assert relative_error(together.pixels[i], alone.pixels[0]) < 1e-12


@pytest.mark.parametrize("batch_size", [1, 2])
def test_direction_for_each_sample_follows_its_chunk(vim, batch_size):
    x, direction = images(3), random(3, 17, 16)
    expected = vimlrp.explain(vim, x, start=("layers.0", direction))
    ours = vimlrp.explain(vim, x, start=("layers.0", direction), batch_size=batch_size)
    assert relative_error(ours.pixels, expected.pixels) < 1e-12


def test_one_direction_serves_every_chunk(vim):
    x, direction = images(3), random(16)
    expected = vimlrp.explain(vim, x, start=("layers.0", direction))
    ours = vimlrp.explain(vim, x, start=("layers.0", direction), batch_size=2)
    assert relative_error(ours.pixels, expected.pixels) < 1e-12


@pytest.mark.parametrize("shape", [(15,), (2, 16, 16), (3, 17, 16), (1, 2, 17, 16)])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_direction_of_a_wrong_shape_is_refused(vim, shape, batch_size):
    with pytest.raises(InputError, match=r"does not fit the activation of layers\.0"):
        vimlrp.explain(vim, images(2), start=("layers.0", random(*shape)), batch_size=batch_size)


def test_start_and_record_work_in_float32():
    model = small_vim(dtype=torch.float32, biases=False)
    x = images(dtype=torch.float32)
    relevance = vimlrp.explain(model, x, start=("layers.1", random(16)), record=["layers.0"])
    total = relevance.recorded["layers.0"].relevance.flatten(1).sum(1)
    assert relative_error(total, relevance.account.target) < 1e-4


def test_alias_has_the_gradient_of_later_readers_alone():
    x = torch.ones(1, requires_grad=True)
    inside = 3 * x
    y = alias(x)
    (gradient,) = torch.autograd.grad((inside + 2 * y).sum(), y)
    assert float(gradient) == 2
