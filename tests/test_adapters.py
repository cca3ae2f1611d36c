"""vimlrp under the interfaces of Captum and Quantus."""

import inspect

import numpy as np
import pytest
import torch
from helpers import OnePatch, images, relative_error, small_vim
from official_doubles import VisionMamba
from small_mambavision import small_mambavision
from small_vmamba import small_vmamba

import vimlrp
from vimlrp.adapters import MambaLRP, quantus_explain
from vimlrp.errors import CompositeError, InputError, TargetError

MODELS = {"vim": small_vim, "vmamba": small_vmamba, "mambavision": small_mambavision}
LABELS = [1, 0, 4]


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_attributions_have_the_shape_of_the_inputs_and_sum_to_the_pixels(model):
    x = images(3)
    attributions = MambaLRP(model).attribute(x, target=2)
    expected = vimlrp.explain(model, x, target=2)
    assert attributions.shape == x.shape
    assert not attributions.requires_grad
    assert relative_error(attributions.sum(1), expected.pixels) < 1e-12


def test_each_colour_has_its_own_relevance(model):
    x = images(2)
    x[:, 1] = 0
    attributions = MambaLRP(model, {"base": "mambalrp", "patch_embedding": "zero"}).attribute(x)
    assert attributions[:, 1].abs().max() == 0
    assert (attributions[:, [0, 2]].abs().amax((0, 2, 3)) > 0).all()


def test_a_linear_model_is_explained_exactly():
    model, x = OnePatch(), images(2, 6)
    weight = torch.einsum("d,dchw->chw", model.head.weight[1], model.proj.weight)
    attributions = MambaLRP(model, "gradient_x_input").attribute(x, target=1)
    assert relative_error(attributions, x * weight) < 1e-12


@pytest.mark.parametrize(
    "target",
    [
        LABELS,
        [(label,) for label in LABELS],
        torch.tensor(LABELS),
        np.array(LABELS),
    ],
    ids=["list", "tuples", "tensor", "array"],
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_one_target_a_sample(target, batch_size):
    model, x = small_vim(), images(3)
    attributions = MambaLRP(model, batch_size=batch_size).attribute(x, target=target)
    alone = [
        MambaLRP(model).attribute(row[None], target=label)
        for row, label in zip(x, LABELS, strict=True)
    ]
    assert relative_error(attributions, torch.cat(alone)) < 1e-12


@pytest.mark.parametrize("target", [3, (3,), torch.tensor(3), torch.tensor([3]), np.array([3])])
def test_one_target_for_all(target):
    model, x = small_vim(), images(3)
    expected = MambaLRP(model).attribute(x, target=[3, 3, 3])
    assert torch.equal(MambaLRP(model).attribute(x, target=target), expected)


def test_without_a_target_the_predicted_class_is_explained():
    model, x = small_vim(), images(3)
    predicted = model(x).argmax(1)
    expected = MambaLRP(model).attribute(x, target=predicted)
    assert torch.equal(MambaLRP(model).attribute(x), expected)


def test_inputs_in_a_tuple_and_with_a_gradient_come_back_in_kind():
    model, x = small_vim(), images(2).requires_grad_()
    (attributions,) = MambaLRP(model).attribute((x,), target=1)
    assert torch.equal(attributions, MambaLRP(model).attribute(x.detach(), target=1))
    assert x.grad is None


def test_the_delta_is_what_the_account_gives_to_others():
    model, x = small_vim(), images(3)
    method = MambaLRP(model, batch_size=2)
    attributions, delta = method.attribute(x, target=LABELS, return_convergence_delta=True)
    account = vimlrp.explain(model, x, target=LABELS).account
    others = sum(share for kind, share in account.parts.items() if kind != "pixels")
    assert relative_error(delta, others) < 1e-9
    assert method.has_convergence_delta()
    output = model(x)[range(3), LABELS].detach()
    assert relative_error(method.compute_convergence_delta((attributions,), output), delta) < 1e-12


def test_without_constants_the_delta_vanishes():
    model, x = small_vim(biases=False, class_token="none", global_pool="avg"), images(2)  # noqa: S106
    torch.nn.init.zeros_(model.pos_embed)
    _, delta = MambaLRP(model).attribute(x, target=1, return_convergence_delta=True)
    assert float((delta / model(x).detach()[:, 1]).abs().max()) < 1e-9


def test_foreign_models_are_wrapped():
    model, x = VisionMamba(small_vim()).eval(), images(2)
    attributions = MambaLRP(model).attribute(x, target=1)
    expected = MambaLRP(model.computes[0]).attribute(x, target=1)
    assert relative_error(attributions, expected) < 1e-9


def test_half_precision_gives_float32():
    model, x = small_vim(dtype=torch.bfloat16), images(2, dtype=torch.bfloat16)
    attributions = MambaLRP(model).attribute(x, target=1)
    assert attributions.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: m.attribute(x, additional_forward_args=3), InputError, "images alone"),
        (lambda m, x: m.attribute((x, x)), InputError, "tuple is no batch of images"),
        (lambda m, x: m.attribute(x[0]), InputError, r"\(3, 32, 32\) is no batch"),
        (lambda m, x: m.attribute(x.float()), InputError, "the model computes in torch.float64"),
        (lambda m, x: m.attribute(x, target=5), TargetError, "5 is out of range"),
        (lambda m, x: m.attribute(x, target=(1, 2)), InputError, "has 2 indices"),
        (lambda m, x: m.attribute(x, target=[1, 2]), InputError, "given for 3 images"),
        (lambda m, x: m.attribute(x, target=torch.ones(3, 2)), InputError, r"shape \(3, 2\)"),
        (lambda m, x: MambaLRP(m.forward_func, "mamba"), CompositeError, "mamba"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(MambaLRP(small_vim()), images(3))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_come_back_as_arrays(keep, dtype):
    model, x = small_vim(), images(3)
    arrays = np.asfortranarray(x.numpy().astype(dtype))
    relevance = quantus_explain(
        model, arrays, np.array(LABELS), keep_channels=keep, device="cpu", batch_size=2
    )
    expected = MambaLRP(model).attribute(torch.tensor(arrays).double(), target=LABELS)
    expected = expected if keep else expected.sum(1, keepdim=True)
    assert isinstance(relevance, np.ndarray)
    assert relevance.shape == (3, 3 if keep else 1, 32, 32)
    assert relative_error(relevance, expected) < 1e-12


@pytest.mark.parametrize("targets", [2, np.int64(2), np.array([[2], [2], [2]])])
def test_targets_as_quantus_may_give_them(targets):
    model, x = small_vim(), images(3).numpy()
    expected = quantus_explain(model, x, np.array([2, 2, 2]))
    assert np.array_equal(quantus_explain(model, x, targets), expected)


def test_another_composite_is_another_explanation():
    model, x = small_vim(), images(3).numpy()
    y = np.array(LABELS)
    plain = quantus_explain(model, x, y, composite="gradient_x_input")
    assert relative_error(quantus_explain(model, x, y), plain) > 1e-2


def test_captum_takes_it():
    captum = pytest.importorskip("captum")
    from captum.attr import NoiseTunnel
    from captum.metrics import infidelity, sensitivity_max

    assert captum.__version__
    model, x = small_vim(), images(3)
    method = MambaLRP(model)
    y = torch.tensor(LABELS)
    signature = inspect.signature(captum.attr.LRP.attribute)
    shared = [name for name in signature.parameters if name != "verbose"]
    assert list(inspect.signature(MambaLRP.attribute).parameters) == shared
    noisy, delta = NoiseTunnel(method).attribute(
        x, nt_type="smoothgrad", nt_samples=2, stdevs=0.0, target=y, return_convergence_delta=True
    )
    attributions, once = method.attribute(x, target=y, return_convergence_delta=True)
    assert relative_error(noisy, attributions) < 1e-9
    assert relative_error(delta, once.repeat_interleave(2)) < 1e-9
    assert sensitivity_max(method.attribute, x, target=y, n_perturb_samples=2).shape == (3,)

    def shifted(inputs):
        noise = 0.01 * torch.randn_like(inputs)
        return noise, inputs - noise

    assert infidelity(model, shifted, x, attributions, target=y).shape == (3,)


@pytest.mark.parametrize("keep", [False, True])
def test_quantus_takes_it(keep):
    quantus = pytest.importorskip("quantus")
    model, x, y = small_vim(dtype=torch.float32), images(3).numpy(), np.array(LABELS)
    quiet = {"disable_warnings": True, "display_progressbar": False}
    call = {
        "model": model,
        "x_batch": x.astype(np.float32),
        "y_batch": y,
        "explain_func": quantus_explain,
        "explain_func_kwargs": {"keep_channels": keep},
        "channel_first": True,
        "device": "cpu",
    }
    curves = quantus.PixelFlipping(features_in_step=64, **quiet)(**call)
    assert np.isfinite(np.array(curves)).all()
    assert len(curves) == 3
    scores = quantus.MaxSensitivity(nr_samples=2, **quiet)(**call)
    assert np.isfinite(scores).all()
